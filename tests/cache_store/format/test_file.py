"""Block files: whatever is written is read back exactly, and nothing else is ever accepted."""

import base64
import hashlib
import json
import random
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.errors import CorruptBlock, Damage
from cache_store.format import header as block_header
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.file import PEEK_BYTES, BlockEncoder, decode, peek_tokens
from cache_store.format.header import Header
from cache_store.format.keys import ChainKey
from tests.support.version_1 import VERSION_1_FILE

COMPRESSIONS = (None, "lz4", "zstd")
SEED = 20
BUILD = "the llama.cpp build that computed it"


def key(seed):
    return ChainKey(hashlib.sha256(str(seed).encode()).hexdigest())


def rows_block(n=5, row_bytes=(8, 24, 3), *, seed=0, **about):
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(0, 7, (n, width), dtype=np.uint8) for width in row_bytes)
    columns = tuple(f"{'kv'[i % 2]}{i // 2}" for i in range(len(rows)))
    id = BlockId(key("root"), Kind.ROWS, key(seed), key(seed + 1), 256, n)
    return Block(
        id,
        rng.integers(0, 150_000, n).astype(np.uint32),
        columns,
        rows,
        reason="cold",
        created_s=1.75e9,
        build=BUILD,
        **about,
    )


def end_block(n_vocab=17, checkpoint_bytes=100):
    rng = np.random.default_rng(1)
    id = BlockId(key("root"), Kind.END, key(7), key(7), 300, 0)
    logits = None if n_vocab is None else rng.standard_normal(n_vocab).astype(np.float32)
    checkpoint = None if checkpoint_bytes is None else rng.integers(0, 256, checkpoint_bytes, dtype=np.uint8)
    return Block(
        id, np.empty(0, np.uint32), logits=logits, checkpoint=checkpoint, reason="finish", created_s=1.75e9, build=BUILD
    )


def replay_block(n=300):
    id = BlockId(key("root"), Kind.REPLAY, key(7), key(8))
    return Block(id, np.arange(n, dtype=np.uint32) * 3, reason="finish", created_s=1.75e9, build=BUILD)


SAMPLES = [rows_block(), rows_block(2, ()), end_block(), end_block(None, 9), replay_block()]


def same_bytes(a, b):
    return (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def assert_same(found, block):
    for name in ("id", "columns", "reason", "created_s", "build"):
        assert getattr(found, name) == getattr(block, name)
    for name in ("tokens", "logits", "checkpoint"):
        assert same_bytes(getattr(found, name), getattr(block, name)), name
    assert len(found.rows) == len(block.rows)
    assert all(same_bytes(ours, theirs) for ours, theirs in zip(found.rows, block.rows, strict=True))


def encoded(block, compression=None):
    return bytes(BlockEncoder(compression).encode(block))


# ---- round trips


def strided(draw, rows):
    """The same rows as a view into something wider."""
    before, behind = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    wide = np.full((len(rows), before + rows.shape[1] + behind), 0xEE, np.uint8)
    view = wide[:, before : before + rows.shape[1]]
    view[:] = rows
    return view


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "token")
texts = st.text(max_size=30)
compressions = st.sampled_from(COMPRESSIONS)


@st.composite
def blocks(draw):
    kind = draw(st.sampled_from(Kind))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    about = {"reason": draw(texts), "build": draw(texts), "created_s": draw(st.floats(0, 1e11))}
    n = draw(st.integers(0, 300))
    tokens = rng.integers(0, 2**32, 2 * n, dtype=np.uint32)[:: draw(st.sampled_from((1, 2)))][:n]
    count = n if kind is Kind.ROWS else 0
    id = BlockId(
        key("root"), kind, key(rng.integers(99)), key(rng.integers(99)), draw(st.integers(0, 2**32 - 1)), count
    )
    if kind is Kind.REPLAY:
        return Block(id, tokens, **about)
    if kind is Kind.END:
        logits = draw(
            st.none() | st.integers(0, 3000).map(lambda n: rng.standard_normal(2 * n).astype(np.float32)[::2])
        )
        checkpoint = draw(st.none() | st.integers(0, 3000).map(lambda n: rng.integers(0, 256, n, dtype=np.uint8)))
        return Block(id, np.empty(0, np.uint32), logits=logits, checkpoint=checkpoint, **about)
    columns = tuple(draw(st.lists(names, unique=True, max_size=6)))
    high = draw(st.sampled_from((2, 256)))
    rows = tuple(strided(draw, rng.integers(0, high, (n, draw(st.integers(1, 70))), dtype=np.uint8)) for _ in columns)
    return Block(id, tokens, columns, rows, **about)


@settings(max_examples=150, deadline=None)
@given(st.lists(blocks(), min_size=1, max_size=4), compressions)
def test_every_block_comes_back_exactly_whatever_the_encoder_wrote_before(several, compression):
    encoder = BlockEncoder(compression)
    for block in several:
        assert_same(decode(encoder.encode(block), block.id), block)


@settings(max_examples=60, deadline=None)
@given(blocks(), compressions)
def test_the_first_bytes_of_a_file_give_its_tokens(block, compression):
    file = encoded(block, compression)
    assert np.array_equal(peek_tokens(file[:PEEK_BYTES], block.id), block.tokens)
    assert len(file) < 2 * PEEK_BYTES or peek_tokens(file, block.id).dtype == np.uint32


@pytest.mark.parametrize("misaligned", [0, 1, 4])
def test_data_may_begin_at_any_address(misaligned):
    block = rows_block(40)
    data = bytearray(misaligned) + encoded(block)
    assert_same(decode(memoryview(data)[misaligned:], block.id), block)


def test_an_uncompressed_file_is_not_copied():
    for block in SAMPLES:
        data = np.frombuffer(bytearray(encoded(block)), np.uint8)
        found = decode(data.data, block.id)
        parts = [
            part
            for part in (found.tokens, *found.rows, found.logits, found.checkpoint)
            if part is not None and part.size
        ]
        assert parts
        assert all(np.shares_memory(part, data) for part in parts)


# ---- the encoder


def test_the_encoder_keeps_one_buffer():
    encoder = BlockEncoder()
    block = rows_block(200)
    first = encoder.encode(block)
    second = encoder.encode(rows_block(100))
    assert np.shares_memory(np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8))
    assert first.readonly


def test_many_shapes_do_not_confuse_the_encoder():
    encoder = BlockEncoder()
    for n in [*range(1, 80), *range(79, 0, -1)]:
        block = rows_block(n, seed=n)
        assert_same(decode(encoder.encode(block), block.id), block)


# ---- the format


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_pyarrow_reads_a_file(compression):
    block = rows_block(6, (4, 10))
    file = encoded(block, compression)
    table = pa.ipc.open_file(pa.BufferReader(file)).read_all()
    table.validate(full=True)
    assert table.column_names == ["seal", "tokens", "payload"]
    assert not any(field.nullable for field in table.schema)
    (row,) = table.to_pylist()
    assert row["tokens"] == block.tokens.tolist()
    rows = b"".join(rows.tobytes() for rows in block.rows)
    packed = row["payload"]
    assert (packed if compression is None else pa.decompress(packed, len(rows), compression, asbytes=True)) == rows
    # and as the stream that lies between the magic and the footer
    assert pa.ipc.open_stream(pa.BufferReader(file[8:])).read_all().equals(table)


@pytest.mark.parametrize(
    "block", [rows_block(0), rows_block(2, ()), replay_block(0), end_block(None, None)], ids=lambda block: block.id.kind
)
def test_plain_pyarrow_reads_a_file_with_nothing_in_it(block):
    table = pa.ipc.open_file(pa.BufferReader(encoded(block))).read_all()
    table.validate(full=True)
    assert table.num_rows == 1


def test_plain_pyarrow_reads_logits_and_checkpoint():
    block = end_block()
    (row,) = pa.ipc.open_file(pa.BufferReader(encoded(block))).read_all().to_pylist()
    assert row["payload"] == block.logits.tobytes() + block.checkpoint.tobytes()


def header_of(file):
    return json.loads(pa.ipc.open_file(pa.BufferReader(file)).schema.metadata[b"erllama.block"])


def test_the_header_says_what_the_file_holds():
    block = rows_block()
    file = encoded(block, "zstd")
    (row,) = pa.ipc.open_file(pa.BufferReader(file)).read_all().to_pylist()
    assert header_of(file) == {
        "format": "erllama-block",
        "version": 2,
        "kind": "rows",
        "root": block.id.root,
        "parent": block.id.parent,
        "key": block.id.key,
        "start": 256,
        "n_tokens": 5,
        "n_ids": 5,
        "parts": ["k0", "v0", "k1"],
        "row_bytes": [8, 24, 3],
        "reason": "cold",
        "build": BUILD,
        "created_s": 1.75e9,
        "compression": "zstd",
        "stored_bytes": len(row["payload"]),
        "tokens_xxh3": xxhash.xxh3_128_hexdigest(block.tokens.tobytes()),
        "payload_xxh3": xxhash.xxh3_128_hexdigest(row["payload"]),
    }


@pytest.mark.parametrize(
    ("block", "parts", "row_bytes"),
    [
        (end_block(), ["logits", "checkpoint"], [68, 100]),
        (end_block(None, 0), ["checkpoint"], [0]),
        (end_block(0, None), ["logits"], [0]),
        (end_block(None, None), [], []),
        (replay_block(), [], []),
    ],
)
def test_the_parts_are_those_that_a_block_has(block, parts, row_bytes):
    file = encoded(block)
    assert (header_of(file)["parts"], header_of(file)["row_bytes"]) == (parts, row_bytes)
    assert_same(decode(file, block.id), block)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("block", SAMPLES, ids=lambda block: block.id.kind)
def test_the_bytes_lie_where_the_specification_says(block, compression):
    file = encoded(block, compression)
    assert file[:8] == b"ARROW1\0\0"
    at = body_at(file)
    seal = file[at : at + 56]
    ids = block.tokens.tobytes()
    payload_at = at + 56 + -(-len(ids) // 8) * 8
    stored_bytes = header_of(file)["stored_bytes"]
    tail_at = payload_at + -(-stored_bytes // 8) * 8
    assert seal[:16] == b"erllama\2" + struct.pack("<Q", len(file))
    header_at, header_bytes = struct.unpack("<II", seal[16:24])
    assert json.loads(file[header_at : header_at + header_bytes]) == header_of(file)
    assert seal[24:40] == xxhash.xxh3_128_digest(file[tail_at:])
    assert seal[40:] == xxhash.xxh3_128_digest(file[: at + 40])
    assert file[at + 56 : payload_at] == ids.ljust(payload_at - at - 56, b"\0")
    assert file[payload_at + stored_bytes : tail_at] == bytes(tail_at - payload_at - stored_bytes)
    assert file[tail_at : tail_at + 8] == b"\xff\xff\xff\xff\0\0\0\0"
    if compression is None:
        parts = [*block.rows, block.logits, block.checkpoint]
        assert file[payload_at : payload_at + stored_bytes] == b"".join(
            part.tobytes() for part in parts if part is not None
        )


def test_a_head_with_the_columns_of_a_large_model_is_peeked_at_with_room_to_spare():
    block = rows_block(256, (2,) * 256)
    file = encoded(block)
    assert np.array_equal(peek_tokens(file[: PEEK_BYTES // 2], block.id), block.tokens)


# files as pyarrow 26 wrote them, zlib and base85; newer ones may lay out flatbuffers otherwise, so
# only reading is pinned
GOLDEN = {
    "rows": (
        "c-rk2J!=#}baG!g!>K1EBADV_v^&Gj?Ci{L(8A6_P!tptNoICt$a$OFxVJG0D)<8|>;%hTVJ8SS7M6mImA^n+J1Y^<H@lM$55>wZ@0gu=-*4W>a2Kv#y?g^B^b_Dw9"
        "ic9=FoTYu7HXn4oB*a8yYvox8;<^<X3xNeW$A7BT3#E@mmKdL?DsvB<*TCb7CoJ(saO?fWtt^JukYQ{`FN0xyhYOYhJ%p;kv!WN11HZit3V?h(3mP5aE)1jr4)gWRV"
        "Wf6ndVY*AvjGm#!;wf$l#|<h!qbw<6IK3v?g*rvbI8_6D=7tCW)8{A{B>(M=W8A#Vp}*LX=EM5GzG>j3s59#9&AeZe+-H47P@P3k)$CF-dq}Oh66zjulXRs*MRnU_w"
        "s0P=ab92r*dEIPtL#iBghBJd{*|p>ZK{h>3)(?~Rs<Y^X<LZ!xgQKvgG*yMWUzZ|K`h`QB}tm5n92RcK2m{m@dh7~2GTNtP;*lk0=jrm<Mjy)xGe$=X`4r1pvxQS_2"
        "*b#1-Ssy8S=JOO<`mcSt9p<ls*4-62?^|-3eXgy7B%vlbi&OgC@uZnwVb8{sCmpl$QC0fTMVL`&6Y7wR~P%4VB2_!FTv6W^*?Pw5ADE5V<KIBD1En=vlPgo=si-=L)"
        "L)&$SVY$XxC>sZGXjSwa7DZK`Z9@OTcGULi2}iRq4a+%2cR*&&>Q%DcS@_JOy&krDEm+m95PAl3*3ZXEzBXyw?t?<F+VeY*=~<&_w(S4uaw58JZmPKECv?YJq}F2_F"
        "zYu$)f~1Vm{}*+LC4)Bc1nw=-Y8>OMmsPAcxQJeAERo9r_dfuqrXEmv7>+B9k*Yc;P2pb`)G}cIM5&P`ak%t?zK1V3Rmt;IrF7{^4;h7!}q&ypKhQ3_T%e-Y+t*1<@"
        "&Ktr(VAw&$N&C5qfzDp;xBTtJRy$CM2?1Z#B_Wv(>CMrs^)=$mOg9S#On@?z($6%6p&Qcb6wF;I0dF`L}2f-p7OY@!);@pYP)faCo8o&+-d&dD2+"
    ),
    "rows zstd": (
        "c-rk&y{i;S5U;miZ<RgW;3*e~EOQ2e>vN{Nr+elFf|-FJ7<hpkkN#xW-M90Y9rZmwz|4cY<BZKj1&sv7#N^;O&gd}l?=UtwwR&crAB$pS_G;<ruBu;ES65dxd+OY|v"
        "p+`w?~rab0s7!+FYJR3w4sYDq@~sec@Mv>T7JFZ*Qmzf<z4)GT^HA9YTZekuLUm4H)Ij41vZ~f<%T@2rkS1u!{D;b=i_V^tdU_b8P5zt^6bhSHF=hK1C~UTrOZTB*o"
        "f0eDM`b~#8OMetx!rxDVVlVl*ER`9Dmlukr7mIArwJRn=-dE?<;mzTgAC^I^m8cCXI<mxaNkZT#Hl_qcowZG0disVqB0E9Z4dbiiJ(l*Tin4Bd!vzh@j3<=5X)Spd@"
        "70xmZ#c3nrwI%t}d!iwsM37}=N@qeLQN#S}W47c$3~NX&=9Y`w@Pb~X>zsAtBeT4CG;t}X<V&}S+Pe(_nkvaYrZ>*Zt^dx@2EpTIz8Q-e5lX*~65EJk)v=6Y3cZVpQ"
        "6pcu(wptFt5ONBLqae;7+_Q<TG!$`zoMXMny5SH6{bvwb;d11<^vmC*71QcOa<m+2oBZ@GQQo)F|Dbbv2j`x;COi^Q!Byv=V@;0`onKU~VoRP$a%CV5d))*(WBiu@Z"
        "X-Y(tvfu{54_HTa;jEU0gFKch+{eM7s<SPuU!3;)I{mShd0NI%ZwVI>bJ*Ke*!~KB4#CG7_I4c{)tLb9AkOdes=_xGefxP_*bTq_7cm3x6jsXmUoJbMU-wNF*P#X5x"
        "s_ADV;4EUZvs^xb}^Wh8rOq^btm>pkI-zDF^ph`_9EZ=(38JI)x%5hk(S}>lq}5f4Zc^;rx)}){NYbzt%W$?3w-k%`ug4*e|Ib1)NjhY#(%dS6n~!o>Db$|Z)o%Fi@"
        "X0k|Lf)Ji@*JPp8xT5&&t6ez~emtPh4ep^x2932L~SEEjHWjHfFTl?6hI2-Dx*kOU)|pQ0K0P+3%DY@7L#TmFGY5$(e4~f%ofxN1sK#`%dn@le_Qa_k1TG;)bWn|1R"
        "$VgK*ds"
    ),
    "rows lz4": (
        "c-rk&yK5Xr7$4nBCviy*EDIGXE{g&wE@J1gGrIzV)wysGxJeO$GEa2A)$Osjwj@8Wuq%TMCPlz51OXL+6oK@q0x1H46!|amM>yZ?t{yoOT&2@@%;S5`Z@=%G;kNJH+"
        "xY?`^bY8_iBKPTT1FqD4r-$=?0^<p7xEs=ty=!1;rF11;pJVJy{-%UyS45Xtd9ei<@>S-wgQ`{soa;JsWj8$U>H2K`D~O;f-N!(#-oV=lRP_^fhNx~@4#YAS;7pa!e"
        "UObQj&()L{dw|tx!rxDVVkx$B|(Xho5y3Hi8N+gdz}WDswyWu_9-+Rh&DgWA12dl8A_yYi@YLwMaBEN)wtG!)$^T<ANj*ND|>xBy0k)#`XvTaTRk#1a*!w2WKY+Bq6"
        "iTMUuKmFd>a(R!Tw~HZ0L0wh=K#iC9F6DF`$xWDb}}#D~FTx5&nJG7Gk-XGW&l0qz2JUk2mQXDST7@>x09RY!&Oax#p(#LAgZV4$<qfSr0UN_`rOJv%6Ky{V_uK`9*"
        "+d$JhlY=8Qoux2nSz+8hrFuM>CizuvUGXw>g<#tw8CrBT$5_Fb>Z4H0|^a}Xy;o%+yE0Ivah_wmPoN5kbi!oEwm^j9cDp3~WD9xlf_uz(@n5oza8gl~W6&QyhO^AuK"
        "O}Gl4LJxfaqi&qdvT=ZiRz+tp7^?d05c(IEk9?o5)iO_uFzPeWeX!Z^ewA&11*Ua$*~8wi1EcyVgx-RkKj+WNzA+!$ucN~5`~9zAGw?ytO4<L5<&Egq_ol+NKIc2LG"
        "W92Rf%E6asJe$;0JBot_0Vd46MJPu)NGX)rs$lOf$v@1$rDuF;RSR_i|D^8o?Fp-_+Gu<nbV*18&_nlIUML;_~v``b=@1kbt~S~Z_1m~?!l+uE&WcPeLQ&h%jwPw_4"
        "7CBx34}q`Rk9f^&f7$Tpc3x;}SwYxf)CG`P$dFpWj62xY2C4+mO?Cv(rWk?M}PVTDXAmuBvsJ!yZ(jQ)a$je|M|Q!^V|wdtH0>Yv9v=puc`Euiwk-_wxUIFTaNax6A"
        ")9e*;xp(&7"
    ),
    "end": (
        "c-rk2O>5LZbh=&JrL4M#QUn#&9Q=T_%_NhVq)1Dz9<)?ML1mfAOx(EHWX-19BHlb`@t{9I=s|>n2R$iN@a942&4b{d@a9q9B<TmM;z9A$7iQ*t&3kX&yf<WFY3bq>j"
        "L>(0C!+{8kcJ6#2#uiws0J9oNOgx_hq+qvA67IDVi=lVgIUXJfL|?T=V85P1WDTCnK5gqG>UkSpA}K!ca4^DN2P->iH%vSWpu+>Y89AUMw%pApSaj29+B8)3R4>k!E"
        "F;uhx=Sm#e`s-GvX_ZT}Kj!!lwcUOJ+05n6SW7pQkF;wwPyH)boTQmhW;`5gG^~h+|@AQ3o^SQej!XLpgT6fKkigRC3~(E*2JXFxcv<)qi7Xknt2^vQ4vP#O*BUs(4"
        "_`=0qq94C2lJyJkem%@DAb;dhkZ?I$6e=7!GD-L_cGl-9wtMKw$Dflj6ogmF0Nz!tF_MmnikM>X@zPy79TGv_w54$qo?((5m0N;bnxdjJbSw8183j#<Do1f$hbH7M>"
        "XUXCJtgd_#kG6V}QusBA0Wu;?-OV8unq!O-+Fwd1PHBIc>79rG?#A88zHLFp=<@OGr_^yv}z=;%~A_DH)RMEh8q;jz*jr#~4gqkXgXgV(<prLHha~K2_HMat_49j6%"
        "vqwsvhH)6BOLPl#ru4o-w=oG*6YbWs-ZuuLIFsgAbJ?dtzcOrFuVJQo8vg(~+ExQi=DjeUcSob_p(3thLwg5`N7`czDDBrRWx6kG5YS{v*U?njnf2T%8m;DWETV0g0"
        "J^@@qmNP1(<5jX#?kM=9a_;}(o=hQ)uA}hFKF}!d3pDhkF|o9<s0+h-Tb$sw>K}%t({mqQ$OBszwAAGv-$c__47%ya{a=o@awC&r<a%J>oXg3U$$Pn-$=LS*Jq0SqB"
        "2Ky$nsd8*+!9Di1-}Lr}xCZK3e!~lz}b&6!HEWx&KD)zmfmzjeH9STgd-megG{Q*Gm"
    ),
    "replay": (
        "c-rk2J#P~+)M-l_ssItH5CcPW12B}z_W5jI#XvSDkSZZ05DNC$r$oKxqRSPMB6fyK2*kw1&<%F}0RuA&@H<#o;Q7ue5wx%{_C>be*S#;lXQjKfb^9(s=m)@L5urA6u"
        "!_#2WpoNP0Rw0(9r9bSFM0lG!Qmi=<@in5ovaD?4KE{bJ_*vi*imJ$8Q3Dr)Q-BQvpm@j)`Lg37!UGcuu0d0?ZME1N?}Ktnu4szbN308BxEr&BovnLkZ7$!OiZK_rM"
        "VSa3#9~0EFm&7EaLF9X+(?&1s6h7uryMI9XeYg#+1jgwu~lHNy~VuwPq0}g7Sz6E4ijLiMS#%P6elt;zqF;OQI=@2-w=TQ!qpmP8khpVhp832tpx3uoV&vabb)VHYr"
        "z$)SPP`a}#5mVxAhCYR*&$hQ_5TASS#X40~n1ZHHq|3=Ckbin;{s{sUKv$2~nQ?ToZ)?1~nogW+J@2V;77kh$WOecP!jypfDXor>Ej`>O0D`Oav!w5BsCK|KKrK=i;"
        "K5fQFo1H3!6!j9`Z8SZA8i!(1k)w>6sI@sQ1(htESmm!l1O9d%LF~>^9Bve*nsWGF3ROO#$xiYga;#eun4O}7<u{4rnOp=f?#-(AgNQ0-)H)mk^X4$Bk1!!nbbO4K?"
        "y0<3Kvv8bqy?M#=9IUwBtbGD+sp22hy6v?&UDvl4VJ*X|lS1e<=sDS^T7RMKb!N8RIVkOp!#{vd#~DRyRnM<fQ_%La@@HJ`99xw+k4>PQU+HCT{+bZbnx|Xnf}g-vW"
        "fd(hRdL)zGgt+>bvTRrsGi*h`UNZKc#yxH=pVGtY0m%AG@7gJJT#8b`J3F|{ld#;O&kA~JiPM!i|O8bcRslF>ihe*dwctLzE1idKYwH0%l*dm1@e93YJ1w(brydMs="
        "HiOv|ZN}qPPzG)w!6TE&6;L$K`kO2A;fuCvV{Yegoe?V%_S$$WIlQzHa"
    ),
}
GOLDEN_BLOCKS = {
    "rows": rows_block(3, (2, 5)),
    "rows zstd": rows_block(3, (2, 5)),
    "rows lz4": rows_block(3, (2, 5)),
    "end": end_block(4, 6),
    "replay": replay_block(4),
}


def unpacked(text):
    return zlib.decompress(base64.b85decode(text))


@pytest.mark.parametrize("name", GOLDEN)
def test_files_written_by_the_first_release_are_read(name):
    block = GOLDEN_BLOCKS[name]
    assert_same(decode(unpacked(GOLDEN[name]), block.id), block)


def test_a_file_of_version_1_is_never_taken_for_a_block():
    """By its name no reader comes across one (`test_block`)."""
    file, block = VERSION_1_FILE, rows_block(3, (2, 5))
    assert pa.ipc.open_file(pa.BufferReader(file)).schema.names == ["token", "k0", "v0"]
    assert damage_of(decode, file, block.id) is Damage.NOT_ARROW
    assert damage_of(peek_tokens, file, block.id) is Damage.NOT_ARROW


# ---- damage


def damage_of(read, *args):
    with pytest.raises(CorruptBlock) as caught:
        read(*args)
    return caught.value.reason


def flip(rng, file):
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(file))
        file[at] ^= 1 << rng.randrange(8)


def truncate(rng, file):
    del file[rng.randrange(len(file)) :]


def drop_the_front(rng, file):
    del file[: rng.randrange(1, len(file))]


def zero(rng, file):
    at = rng.randrange(len(file))
    end = min(len(file), at + rng.choice((4, 64, 4096)))
    file[at:end] = bytes(end - at)


def scribble(rng, file):
    at = rng.randrange(len(file))
    end = min(len(file), at + rng.choice((4, 64, 4096)))
    file[at:end] = rng.randbytes(end - at)


def append(rng, file):
    file += rng.choice((bytes, rng.randbytes))(rng.randrange(1, 500))


def repeat(rng, file):
    file += bytes(file)


def graft(rng, file):
    """A range of one file in another, as after a crash during a rewrite in place."""
    other = rng.choice(FILES)[0]
    at = rng.randrange(min(len(file), len(other)))
    end = rng.randrange(at, min(len(file), len(other))) + 1
    file[at:end] = other[at:end]


def absurd_number(rng, file):
    at = rng.randrange(len(file) // 4) * 4
    file[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xf0\xff\xff\x7f"))


FILES = [(encoded(block, compression), block) for block in SAMPLES for compression in COMPRESSIONS]
DAMAGES = [flip, truncate, drop_the_front, zero, scribble, append, repeat, graft, absurd_number]


def damaged_files(damage, count):
    rng = random.Random(f"{SEED} {damage.__name__}")
    for _ in range(count):
        file, block = rng.choice(FILES)
        bad = bytearray(file)
        damage(rng, bad)
        if all(bad != good for good, _ in FILES):  # a graft may be large enough to make another good file
            yield bytes(bad), block


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_damaged_file_is_ever_decoded(damage):
    seen = [damage_of(decode, bad, block.id) for bad, block in damaged_files(damage, 1200)]
    assert len(seen) > 500


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_tokens_of_a_damaged_file_are_right_or_refused(damage):
    for bad, block in damaged_files(damage, 200):
        try:
            found = peek_tokens(bad, block.id)
        except CorruptBlock:
            continue
        assert np.array_equal(found, block.tokens)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "block", [rows_block(3, (2, 5)), end_block(3, 5), replay_block(3)], ids=lambda block: block.id.kind
)
def test_every_single_bit_of_a_file_counts(block, compression):
    file = encoded(block, compression)
    for at in range(len(file)):
        for bit in range(8) if at % 7 == 0 else (5,):
            bad = bytearray(file)
            bad[at] ^= 1 << bit
            assert damage_of(decode, bytes(bad), block.id) in Damage


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_single_bit_in_front_of_the_payload_counts_for_a_peek(compression):
    block = rows_block(3, (2, 5))
    file = encoded(block, compression)
    n_head = file.index(block.tokens.tobytes()) + 16  # with the padding
    for at in range(n_head):
        bad = bytearray(file)
        bad[at] ^= 1 << at % 8
        assert damage_of(peek_tokens, bytes(bad), block.id) in Damage


@pytest.mark.parametrize("block", SAMPLES, ids=lambda block: block.id.kind)
def test_a_file_cut_anywhere_is_short(block):
    file = encoded(block)
    assert {damage_of(decode, file[:end], block.id) for end in range(len(file))} == {Damage.SHORT}


def test_a_file_with_something_behind_it_is_not_arrow():
    file, block = FILES[0]
    assert damage_of(decode, file + b"\0", block.id) is Damage.NOT_ARROW


def test_noise_is_not_arrow():
    rng = random.Random(SEED)
    for n in (8, 63, 64, 5000):
        assert damage_of(decode, rng.randbytes(n), SAMPLES[0].id) is Damage.NOT_ARROW


def test_an_arrow_file_of_others_is_not_ours():
    sink = pa.BufferOutputStream()
    table = pa.table({"token": pa.array([1, 2], pa.uint32())})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert damage_of(decode, memoryview(sink.getvalue()), SAMPLES[0].id) is Damage.NOT_ARROW


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_changed_payload_does_not_hash_to_the_header(compression, monkeypatch):
    block = rows_block()
    file = bytearray(encoded(block, compression))
    file[file.index(block.tokens.tobytes()) + 4 * 6 + 12] ^= 1
    monkeypatch.setattr(pa, "CompressedInputStream", lambda *args: pytest.fail("decompressed what is damaged"))
    assert damage_of(decode, bytes(file), block.id) is Damage.DIGEST


def test_another_format_version_is_told_apart(monkeypatch):
    block = rows_block()
    monkeypatch.setattr(block_header, "FORMAT_VERSION", 3)
    newer = encoded(block)
    monkeypatch.undo()
    assert damage_of(decode, newer, block.id) is Damage.VERSION
    assert damage_of(peek_tokens, newer, block.id) is Damage.VERSION


@pytest.mark.parametrize("field", ["root", "kind", "parent", "key", "start", "n_tokens"])
def test_a_good_file_under_another_name_is_mislabelled(field):
    block = rows_block()
    other = {"kind": Kind.REPLAY, "start": 0, "n_tokens": 4}.get(field, key("other"))
    wrong = replace(block.id, **{field: other})
    assert damage_of(decode, encoded(block), wrong) is Damage.MISLABELLED
    assert damage_of(peek_tokens, encoded(block), wrong) is Damage.MISLABELLED


def test_too_little_of_a_head_is_short():
    block = rows_block()
    file = encoded(block)
    assert damage_of(peek_tokens, file[:1000], block.id) is Damage.SHORT


def body_at(file):
    at = 8
    for _ in range(2):
        mark, size = struct.unpack_from("<Ii", file, at)
        assert mark == 0xFFFFFFFF
        at += 8 + size
    return at


def resealed(file, begin, change):
    """`file` with other bytes from `begin` on, and its seal made anew."""
    at = body_at(file)
    bad = bytearray(file)
    bad[begin : begin + len(change)] = change
    bad[at + 40 : at + 56] = xxhash.xxh3_128_digest(bad[: at + 40])
    return bytes(bad)


def changed(file, **claims):
    """`file` with a header that says something else, sealed; the build makes room."""
    (begin, size) = struct.unpack_from("<II", file, body_at(file) + 16)
    claimed = json.dumps(
        json.loads(file[begin : begin + size]) | {"reason": "", "build": ""} | claims, separators=(",", ":")
    )
    assert len(claimed) <= size
    return resealed(file, begin, claimed.encode().ljust(size))


class Forger(BlockEncoder):
    """Seals a header that claims something else, or another payload."""

    def __init__(self, compression=None, *, stored=None, **claims):
        super().__init__(compression)
        self.stored = stored
        self.claims = claims

    def _written(self, header, tokens, stored):
        if self.stored is not None:
            stored = [memoryview(self.stored(b"".join(stored)))]
            size = len(stored[0])
            header = replace(header, stored_bytes=size, payload_xxh3=xxhash.xxh3_128_hexdigest(stored[0]))
        return super()._written(replace(header, **self.claims), tokens, stored)


def test_what_is_sealed_without_a_change_is_read():
    block = rows_block()
    assert_same(decode(Forger("lz4", stored=bytes, reason=block.reason).encode(block), block.id), block)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("parts", "row_bytes"),
    [
        (["k0", "v0"], [8, 24]),
        (["k0", "v0", "k1"], [8, 24, 4]),
        (["k0", "v0", "k1", "v1"], [8, 24, 3, 1]),
        (["k0", "v0", "k1"], [0, 32, 3]),
        (["k0", "v0", "k1"], [-8, 40, 3]),
        (["k0", "v0", "v0"], [8, 24, 3]),
        (["k0", "v0", "k1"], [8.0, 24, 3]),
        (["k0", "v0", "k1"], [True, 31, 3]),
        (["k0", "v0", 7], [8, 24, 3]),
        (["k0", "v0"], [8, 24, 3]),
        (["k0", "v0", "k1"], [8, 27]),
        (["k0", "v0", ["k1"]], [8, 24, 3]),
        ("kvk", [8, 24, 3]),
        (["k0", "v0", "k1"], 35),
        (None, None),
    ],
    ids=str,
)
def test_sealed_rows_with_parts_that_are_not_in_them_are_refused(parts, row_bytes, compression):
    block = rows_block()
    file = changed(encoded(block, compression), parts=parts, row_bytes=row_bytes)
    assert damage_of(decode, file, block.id) is Damage.NOT_ARROW


@pytest.mark.parametrize(
    ("parts", "row_bytes"),
    [
        (["checkpoint", "logits"], [100, 68]),
        (["logits", "checkpoint"], [67, 101]),
        (["k0"], [168]),
        (["logits", "checkpoint", "checkpoint"], [68, 50, 50]),
        (["logits"], [68]),
        ([], []),
    ],
    ids=str,
)
def test_a_sealed_end_with_parts_of_something_else_is_refused(parts, row_bytes):
    block = end_block()
    assert damage_of(decode, changed(encoded(block), parts=parts, row_bytes=row_bytes), block.id) is Damage.NOT_ARROW


def test_a_sealed_replay_with_rows_is_refused():
    block = replay_block(5)
    assert (
        damage_of(decode, Forger(stored=lambda _: b"rows", parts=["k0"], row_bytes=[4]).encode(block), block.id)
        is Damage.NOT_ARROW
    )


HUGE = 1 << 30


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("row_bytes", [HUGE, HUGE // 5, 1 << 50], ids=str)
def test_a_huge_payload_claimed_by_a_small_file_takes_no_memory(compression, row_bytes):
    block = rows_block(5, (8,))
    file = changed(encoded(block, compression), row_bytes=[row_bytes])
    tracemalloc.start()
    try:
        assert damage_of(decode, file, block.id) is Damage.NOT_ARROW
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "claims",
    [{"n_ids": HUGE}, {"stored_bytes": HUGE}, {"stored_bytes": 1 << 60}, {"stored_bytes": 8000, "row_bytes": [1600]}],
    ids=str,
)
def test_sizes_that_a_file_cannot_have_are_refused(compression, claims):
    block = rows_block(5, (8,))
    file = changed(encoded(block, compression), **claims)
    assert damage_of(decode, file, block.id) is Damage.NOT_ARROW


def test_no_rows_of_a_huge_width_are_refused():
    block = rows_block(0, (2,))
    assert damage_of(decode, changed(encoded(block), row_bytes=[1 << 62]), block.id) is Damage.NOT_ARROW


def test_zeros_that_compress_as_well_as_anything_can_are_read():
    block = rows_block(4, (1 << 22,))
    block = replace(block, rows=(np.zeros((4, 1 << 22), np.uint8),))
    for compression in COMPRESSIONS:
        file = BlockEncoder(compression).encode(block)
        assert not decode(file, block.id).rows[0].any()
        assert compression is None or len(file) < 1 << 17


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored[:-1],
        lambda stored: stored + b"more",
        lambda stored: stored[: len(stored) // 2],
        lambda stored: b"",
        lambda stored: b"nothing that was compressed",
        lambda stored: bytes(len(stored)),
    ],
    ids=["cut", "longer", "half", "empty", "noise", "zeros"],
)
def test_a_sealed_payload_that_is_not_compressed_as_the_header_says_is_refused(compression, change):
    block = rows_block()
    assert damage_of(decode, Forger(compression, stored=change).encode(block), block.id) is Damage.NOT_ARROW


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("n_more", [-1, 1, 1000])
def test_a_sealed_payload_of_another_length_is_refused(compression, n_more):
    block = rows_block(1, (2000,))
    assert (
        damage_of(decode, changed(encoded(block, compression), row_bytes=[2000 + n_more]), block.id) is Damage.NOT_ARROW
    )


def test_lack_of_memory_is_no_damage(monkeypatch):
    block = rows_block()
    file = encoded(block, "zstd")

    def refuse(*args):
        raise MemoryError

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(MemoryError):
        decode(file, block.id)


@pytest.mark.parametrize(
    "place", [(0, 0), (0, 50), (16, 900), (1 << 31, 900), (100, 1 << 31), (9, (1 << 32) - 1)], ids=str
)
def test_a_seal_that_points_to_no_header_is_refused(place):
    block = rows_block()
    file = encoded(block)
    assert (
        damage_of(decode, resealed(file, body_at(file) + 16, struct.pack("<II", *place)), block.id) is Damage.NOT_ARROW
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"format":"erllama-block"}',
        b'{"format":"erllama-block","version":1}',
        b'{"format":"erllama-block","version":2,"kind":"rows"}',
        b"\xff\xfe",
    ],
    ids=["empty", "null", "deep", "no version", "another version", "fields missing", "not utf-8"],
)
def test_a_header_that_is_not_ours_is_refused(text):
    assert damage_of(Header.parse, text) is Damage.NOT_ARROW


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", -1),
        ("start", True),
        ("n_ids", 6),
        ("n_ids", "5"),
        ("kind", "cols"),
        ("key", None),
        ("created_s", 1),
        ("created_s", float("nan")),
        ("compression", 3),
        ("compression", "brotli"),
        ("compression", "zstd\0"),
        ("stored_bytes", 174),
        ("parts", {"k0": 1, "v0": 2, "k1": 3}),
        ("parts", None),
        ("row_bytes", "abc"),
        ("stored_bytes", -1),
        ("tokens_xxh3", 7),
        ("odd", 1),
    ],
)
def test_a_header_with_a_wrong_field_is_refused(field, value):
    good = header_of(encoded(rows_block()))
    assert Header.parse(json.dumps(good).encode()).n_ids == 5
    assert damage_of(Header.parse, json.dumps(good | {field: value}).encode()) is Damage.NOT_ARROW


# ---- blocks that contradict themselves


TOKENS = np.arange(5, dtype=np.uint32)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (replace(rows_block(), tokens=TOKENS[:4]), "4 token ids, 5 in the name"),
        (replace(rows_block(), tokens=TOKENS.astype(np.int64)), "uint32"),
        (replace(rows_block(), columns=("k0",)), "1 column names, 3 columns"),
        (replace(rows_block(), columns=("k0", "v0", "k0")), "names repeat"),
        (replace(rows_block(1, (4,)), rows=(np.zeros((2, 4), np.uint8),)), "column k0"),
        (replace(rows_block(1, (4,)), rows=(np.zeros((1, 0), np.uint8),)), "column k0"),
        (replace(rows_block(1, (4,)), rows=(np.zeros((1, 4), np.int8),)), "column k0"),
        (replace(rows_block(), logits=np.zeros(2, np.float32)), "outside an END"),
        (replace(replay_block(), checkpoint=np.zeros(2, np.uint8)), "outside an END"),
        (replace(end_block(), tokens=TOKENS), "5 token ids"),
        (replace(end_block(), logits=np.zeros(2)), "float32"),
        (replace(end_block(), checkpoint=np.zeros((2, 2), np.uint8)), "list of bytes"),
        (replace(replay_block(), columns=("k0",), rows=(np.zeros((300, 4), np.uint8),)), "without rows"),
        (replace(end_block(), created_s=float("nan")), "created_s"),
    ],
)
def test_a_block_that_contradicts_itself_is_not_written(block, complaint):
    with pytest.raises(ValueError, match=complaint):
        BlockEncoder().encode(block)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_payload_that_is_larger_than_a_file_takes_is_not_written(compression, monkeypatch):
    block = rows_block(5, (8,))
    monkeypatch.setattr(block_header, "MAX_PAYLOAD_BYTES", 39)
    with pytest.raises(ValueError, match="40 bytes of payload"):
        BlockEncoder(compression).encode(block)


def test_a_name_that_stands_for_nothing_is_not_written():
    block = rows_block()
    with pytest.raises(ValueError, match="start is -1"):
        BlockEncoder().encode(replace(block, id=replace(block.id, start=-1)))
