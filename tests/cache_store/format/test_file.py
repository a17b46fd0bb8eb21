"""Block files: whatever is written is read back exactly, and nothing else is ever accepted."""

import base64
import hashlib
import json
import random
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.errors import CorruptBlock, Damage
from cache_store.format import file as block_file
from cache_store.format import header as block_header
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.file import PEEK_BYTES, BlockDecoder, BlockEncoder, peek_tokens
from cache_store.format.keys import ChainKey

COMPRESSIONS = (None, "lz4", "zstd")
SEED = 20


def key(seed):
    return ChainKey(hashlib.sha256(str(seed).encode()).hexdigest())


def rows_block(n=5, row_bytes=(8, 24, 3), *, seed=0, **about):
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(0, 7, (n, width), dtype=np.uint8) for width in row_bytes)
    columns = tuple(f"{'kv'[i % 2]}{i // 2}" for i in range(len(rows)))
    id = BlockId(key("root"), Kind.ROWS, key(seed), key(seed + 1), 256, n)
    return Block(id, rng.integers(0, 150_000, n).astype(np.uint32), columns, rows, reason="cold", created_s=1.75e9, build="b1", **about)


def end_block(n_vocab=17, checkpoint_bytes=100):
    rng = np.random.default_rng(1)
    id = BlockId(key("root"), Kind.END, key(7), key(7), 300, 0)
    logits = None if n_vocab is None else rng.standard_normal(n_vocab).astype(np.float32)
    checkpoint = None if checkpoint_bytes is None else rng.integers(0, 256, checkpoint_bytes, dtype=np.uint8)
    return Block(id, np.empty(0, np.uint32), logits=logits, checkpoint=checkpoint, reason="finish", created_s=1.75e9, build="b1")


def replay_block(n=300):
    id = BlockId(key("root"), Kind.REPLAY, key(7), key(8))
    return Block(id, np.arange(n, dtype=np.uint32) * 3, reason="finish", created_s=1.75e9, build="b1")


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


DECODER = BlockDecoder()


def decode(data, expect):
    """What a new decoder makes of it; one that has seen the shapes of all the tests before must agree, the first and the second time."""
    try:
        block = block_file.decode(data, expect)
    except CorruptBlock as error:
        reason = damage_of(DECODER.decode, data, expect)
        if reason is not error.reason:
            pytest.fail(f"{reason} instead of {error.reason}")
        raise
    for _ in range(2):
        assert_same(DECODER.decode(data, expect), block)
    return block


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
    id = BlockId(key("root"), kind, key(rng.integers(99)), key(rng.integers(99)), draw(st.integers(0, 2**32 - 1)), count)
    if kind is Kind.REPLAY:
        return Block(id, tokens, **about)
    if kind is Kind.END:
        logits = draw(st.none() | st.integers(0, 3000).map(lambda n: rng.standard_normal(2 * n).astype(np.float32)[::2]))
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
        parts = [part for part in (found.tokens, *found.rows, found.logits, found.checkpoint) if part is not None and part.size]
        assert parts
        assert all(np.shares_memory(part, data) for part in parts)


# ---- shapes that were seen before


def sealed(block, change):
    """The file of `block` with its bytes changed before they are sealed."""

    class Liar(BlockEncoder):
        def _write(self, batch, width):
            return np.frombuffer(bytearray(change(super()._write(batch, width).tobytes())), np.uint8)

    return bytes(Liar().encode(block))


@pytest.fixture
def knowing(monkeypatch):
    """A decoder that has seen the shape of `rows_block()` and has no Arrow any more."""
    decoder = BlockDecoder()
    decoder.decode(encoded(rows_block()), rows_block().id)
    monkeypatch.setattr(block_file, "_read_batch", lambda view: pytest.fail("asked Arrow"))
    return decoder


def test_a_shape_that_was_seen_before_is_read_without_arrow(knowing):
    block = replace(rows_block(seed=3), reason="finish", created_s=1.7e9)
    data = np.frombuffer(bytearray(encoded(block)), np.uint8)
    found = knowing.decode(data.data, block.id)
    assert_same(found, block)
    assert all(np.shares_memory(part, data) and not part.flags.writeable for part in (found.tokens, *found.rows))


def test_many_shapes_do_not_confuse_a_decoder():
    decoder = BlockDecoder()
    many = [rows_block(n, widths, seed=n) for n in range(1, 50) for widths in ((8, 8, 8), (8, 8, 24, 24), (3, 8, 3, 8), (8,), ())]
    for block in many * 2:
        assert_same(decoder.decode(encoded(block), block.id), block)


def test_columns_of_other_names_are_not_taken_for_those_seen_before():
    block = rows_block()
    renamed = replace(block, columns=("k7", *block.columns[1:]))
    decoder = BlockDecoder()
    for one in (block, renamed, block):
        assert_same(decoder.decode(encoded(one), one.id), one)


def test_a_footer_of_its_own_is_not_overlooked_in_a_shape_seen_before():
    block = rows_block()

    def rename(file):
        return b"v7".join(file.rsplit(b"v0", 1))

    decoder = BlockDecoder()
    for file in (encoded(block), sealed(block, rename)):
        assert_same(decoder.decode(file, block.id), block_file.decode(file, block.id))
    assert decoder.decode(file, block.id).columns == ("k0", "v7", "k1")


def test_a_payload_that_does_not_fit_a_shape_seen_before_is_refused(knowing, monkeypatch):
    block = rows_block()
    monkeypatch.setattr(Block, "payload_bytes", 7)
    assert damage_of(knowing.decode, encoded(block), block.id) is Damage.NOT_ARROW


def test_every_single_byte_of_a_shape_seen_before_counts(knowing):
    block = rows_block()
    file = encoded(block)
    for at in range(len(file)):
        bad = bytearray(file)
        bad[at] ^= 0x20
        assert damage_of(knowing.decode, bytes(bad), block.id) in Damage


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
    assert table.column_names == ["token", "k0", "v0"]
    assert table["token"].to_pylist() == block.tokens.tolist()
    assert table["v0"].to_pylist() == [row.tobytes() for row in block.rows[1]]
    # and as the stream that lies between the magic and the footer
    assert pa.ipc.open_stream(pa.BufferReader(file[8:])).read_all().equals(table)


def test_plain_pyarrow_reads_logits_and_checkpoint():
    block = end_block()
    (row,) = pa.ipc.open_file(pa.BufferReader(encoded(block))).read_all().to_pylist()
    assert np.array_equal(np.array(row["logits"], np.float32), block.logits)
    assert row["checkpoint"] == block.checkpoint.tobytes()


def test_the_header_says_what_the_file_holds():
    block = rows_block()
    file = encoded(block, "zstd")
    header = json.loads(pa.ipc.open_file(pa.BufferReader(file)).schema.metadata[b"erllama.block"])
    body = file[header["body_at"] :][: header["body_bytes"]]
    assert header == {
        "format": "erllama-block",
        "version": 1,
        "kind": "rows",
        "root": block.id.root,
        "parent": block.id.parent,
        "key": block.id.key,
        "start": 256,
        "n_tokens": 5,
        "rows": 5,
        "reason": "cold",
        "build": "b1",
        "created_s": 1.75e9,
        "compression": "zstd",
        "payload_bytes": block.payload_bytes,
        "body_at": header["body_at"],
        "body_bytes": header["body_bytes"],
        "file_bytes": len(file),
        "payload_xxh3": xxhash.xxh3_128_hexdigest(body),
    }


# files as pyarrow 26 wrote them, zlib and base85; newer ones may lay out flatbuffers otherwise, so only reading is pinned
GOLDEN = {
    "rows": (
        "c-rk(&2AGh5O$hu2&j}jAk+hgXiq(aviACCT~UcX0a7m<BYSPDQMTD?la@xnt8m~2sCWp(ks}Yn9mcy3jlz$(lZpH@KOWoToo|$r)6*9(F+$&g;s~J_dAf)8"
        "P#;BT05hOY@27kh`d*Mf@A)~Xp?UcLdaoP6JPtbFy-r+JpQ}Z3l-Rl~)wz12%c__rqvXog^GP*Jj_@d%PG$y7>gv@TG<8+^1vJMQmDJ!&Sj;o5waQX#m@1U!"
        "R%k7h611=w=gd&X;b$GgMr48up$T}pP_><TU(DIUYR;W2a_+L+NJd1?3vRgNg^&d?x*(Y}hFXa=<$_3Xq=;~u2`j<Z)Gomh*E!cjWX@&O!QRq<B&F6lrZUF_"
        "70M`Tl_JDpLuHX-%ZM>r<br9c!O?u7YB&>Ne3Z<_i)w0T^W-QSwbySZR?U56lA<aNtk9Q}(#J<*U<%MKtQmtT7A$S)Fa<?*eo@<b8`RllS^E1g%SxHCUM?)y"
        "69~1g%yR4>1Pj3f8`Kn>xJhYOe1=7O>*M<REQ2#B>olfH5|uhiA*|R)A{|6OFP!B(c{|+FmI8SgxDPEP|6!B-z;~gQ(9#wr&<$V^3=cfkJPa~VJJ7Dc=pE<*"
        "qR`jB*iFIi6X^Xs2Cc`UI}JL;0mIOaA0Mx+^FEsl1k4+Nv=96+=sYfd27uc~E82s#EjGsBch8HuJ@gH=*m;0%>36tz6ZU<78;=$YpW@+}U1jNUlg|R@jm*}N"
        "tF0*IbR}9dq-i=_s7cwR=P_5Akb)AHI!u_<V4Z3OIa;W~nN+s>w5FJFndMFqo0{Bl18EJ=SGY98Tw~UrfAwy2t4d!3_QQRA4R{mo-CetPAN`qj!x(SK<BhfZ"
        "8~PRhU`^KD*cbf+|7e8Jhr0-Ubm3#@Mp5K9jiPQpLY=4|?esd`=G|B4+J*0^-@IZR&fi1N!dtKE-!N+Zed)C0!7n%8*3ND1+}6%5{U5b62gOPA-{J>vgfZ>"
    ),
    "rows zstd": (
        "c-rk(O>Pr06n2|TT2N`TK)?b}G-AObv}2F|rlJx(0a7<~SNT_sGR;(zP#O?--~=qV02LBf;0!ETas)Q0JkLyM)D}1Zd6CC{@AG>ezw!I5?C$M7e}NG?2kAx#"
        "by1L;XdQJ>gjQh$vef=<UxR16u|I2vF~HD*eHESoTZM7A!NTKB?2Gb9P2%m?m3gj?)DxW-W*GP56IYH0#VFp!{dhPSS(s85uf~9sMG+jR#3{|F#i?+Zr&w#1"
        "CfG7%l;%!oEtC?}IE*E;lyUeu&#)D#;6i8uk&adAMj;mS&N$7v_eOG`N}DkvBsbjhj2n>|VznV@W-WCY)|3m9K_Eqh*G#w!Vh!CC0&y+5CL;Adr5@JKELali"
        "yk{!)Oi-b$qE0D7Jhn7533iNFtA!LyQw@Q}6IH@H5yt!R=wMO|-Dn(dr~P{S)xfE7$V_aC+=7RGImknPGzP^0I&t;@reeX8S~e2^ilgJwjq9Ywug4QxWnh{Y"
        "${y(H#DNEaWb49C55gzGGD#Y>fu-!nevrGFo)StfVw|2HrVyDZVVrl?Vo12kFwx%IL>X&rA``CTx4nfdq>?}bx1cq}zgZPO=q+eDw4|m9bOsy*-A3S=+l?*A"
        "GPDzz^d4}aDD?F&^M)|*3*ceg1vGHcO2tmyhQrWu=<m<@g_u<Z0_UxQwF7#u!2&OS1A@DUX0i^xH8*x4?s_n_+UN(WxpN;~$aTDU)~x&CA|EvwZsFdco7Lz}"
        "RnLMamCcn<skJHLbY_~HNRy;DQG>iH&K-=kVpJ+7i3KVoiB*}giUUz%L!7JEsitynGD3JJi6O8YWl9SQCG3nRlCrFR|JipNI~6_`*dD@O+tt1T{tntBROhIL"
        "<|X8FrOIbWM+f~`9yERLl6|J%ZF+eLm)H2UuDr*;^|hvd{CVqVZ%rX|r;pIb8wh>!%}(a<4qTYattg5*Xk*^KF%73FYIP#C6m_EI_EPJ-KC9K)ScCJ}sj}8>"
        ")@!4u!53ZJqrIq(_kF4E_pfAXaR)E%;Kd!hkpJTjmH_Nl|51JcT3I|}"
    ),
    "end": (
        "c-rk(&2AGh5O!&rMkrK~=phFV(Vlt;t-ZF_-irP`0a7KzF|v2PWR>l1wY!Bzh&SNE8z6*`dg~kT1eG{&K;pt9aNrK(-Axk(xN##B`DbUw<ME8=vvP8J`uHh9"
        "=qFHr1EC(WbQf)*HrhZPm;tS|Zuwp4TMhrXW#=G<X89fHt*is{UL&*JODD?mGgUhKj>(fmovDX9$%2V9be@~Mh_lq$Cqrivr=eAWe(2;`X7!mQl=&<qR2bq>"
        "qP3!!gj@wmdq!w2loBj3gh(DT?!nJQoP>f3PYCUTrE`^=)Y=k0c0J$MhPi=M(l9U5S~HG`a6L|hk)C$lfP0EaKN6nHl@}`JV@b5jI00J|GyOM)ic;m^6UBJw"
        "q@yyMn6z;Au|4;TqKZatRAB?-L~$AyV_2gv;=~3>TLS^eOB0T)vf#L;T`&-2XXm*o>Zqm{Nn#@~O)?dZ^t3df@48?s3#TKS5hAS%)n_ASatM1SX7){8g6B3a"
        "FUJ&oa6LG+h^XiBQ1Za@m4t&C9&s8;mq_Q;U_~pc$-=-rXif3&R>cqBcc8HvBG7xlA3&1(7H1wbyc%&33dSawoM&-bBJ>&bKGnM2ZIBJn9D{bCwV@^1v$!lQ"
        "zg5Y4Xd5u8jW#Qk>NQxlw!XZV9ploRSu0k*UF%i7#m6r&?V}lO!P*)ldti6VvesMZ2dXg?qdENvAFrGJ-p%7ugW?_;jLocA52~^jSXMlfL&?@G?6DbZL6KoR"
        "C{>(PReGS63PVPL8&YP7p~3~s^d$=f6OnT3eJWLobpU{=X($c$4b-&oHRha$K9yKRwg0pH6-FgCGyUc~Hb<|UbFVF&dlUVgI!og+zt@cYC3$~IzSE5D1)cRJ"
        "KhQ#s7juICpc8+;K78}!^r*Xcb@=t>!$-7a|0=&Zdb?NOhnXK;xL@rmyS*w-*3zTKx7)k9QLq2jY>a=~ef74k-qzLIx}yK<Z9N8DJgNSJ`~rx0GXD"
    ),
    "replay": (
        "c-rk&&2AGh5O&*b38+*#aOi<Uv?mUs_;3AFQHeeQQZF2%@!G3I*<_>L6dEC3h9}_2Bk&kJ1a}zkZb${?&LLl9$DSFF$79Xsy}r45`;HOv6Y(`6WJn^OkTY^Z"
        "j>!N=h=b&}{1p47m%mBk7}eOKe1Lt_4RAc{b+P-H7FE4~b$XeGx-4M<FI`#X^K_iP4|OxEmgyxMr}Np;qe&fBC2UYvS5;gh4HMEz&x8(43FaIK%6tYnI2E*W"
        "8bHfDFlI6@GljoUWXx-!mDY}<rxny;8GUI>xw6&;$#VlHNL4uJWJa0hDq}hr<v7nX1<cq&E1rS!AT2e_ahWmnH4htf#B;?Z7d-c#bEY-p7$N!+jAC4rQlP$2"
        "kQ=9zQ&xFPLqS#HL*bMJfsUFr)EE;Tr_0H@nulf6PU`9d4kQi&G%+)2F<Z`>DXwt0vodDL#W-@*uY;eUG1D3CaDfi;YO$(A)1`HJTbA+so3a8wahrAMc5#*8"
        "OyZ5O%<_KPYndA3mSxz^xzTdx;_hxLFa%|UG(ZjD!7{5TfMo)Lp~g|k8B0Hn_SmCCq=Bc{`r^N6i@)cMXOSzgkDT$SWszaeHRLe<KPNqpAda!Mm4e(fK<Nq2"
        "N4+lc*AyL|lP%70ZO36l^m`UXM+x~sI*uEX9UkJZFa5rscX4;5^@@$AVOvXAZPh7hT3M*Eq&gAGwxWB6lG4!{W@TGNR~}iz8Osaii#)eZfcKsjHrSk7&s4Wh"
        "YbrGeVTH+p@)Ff7n8I=&bb;j-a@WPb&2JN+j9h)*pC@wl>;BBiy>lOuf8)>mBoEjeVT*V0xX=G~-6`JZNt?}K8&_N%_kTfl@5Q&?;p*V;{mA~U*}paWw`Pz3"
        "@U8id2G{L3^DiIh2*>"
    ),
}


@pytest.mark.parametrize("name", ["rows", "rows zstd", "end", "replay"])
def test_files_written_by_the_first_release_are_read(name):
    block = {"rows": rows_block(3, (2, 5)), "rows zstd": rows_block(3, (2, 5)), "end": end_block(4, 6), "replay": replay_block(4)}[name]
    assert_same(decode(zlib.decompress(base64.b85decode(GOLDEN[name])), block.id), block)


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
        if bad != file:
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


def test_every_single_byte_of_a_file_counts():
    block = rows_block(3, (2, 5))
    file = encoded(block)
    for at in range(len(file)):
        bad = bytearray(file)
        bad[at] ^= 0x20
        assert damage_of(decode, bytes(bad), block.id) in Damage


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


def test_a_changed_payload_does_not_hash_to_the_header():
    block = rows_block()
    file = bytearray(encoded(block))
    at = file.index(block.rows[1].tobytes())
    file[at] ^= 1
    assert damage_of(decode, bytes(file), block.id) is Damage.DIGEST


def test_another_format_version_is_told_apart(monkeypatch):
    block = rows_block()
    monkeypatch.setattr(block_header, "FILE_VERSION", 2)
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


class Forger(BlockEncoder):
    """Seals another table than the block's."""

    def __init__(self, table, compression=None):
        super().__init__(compression)
        self.table = table

    def _write(self, batch, width):
        return super()._write(self.table, width)


def table(**columns):
    return pa.RecordBatch.from_pydict(columns)


u32, f32 = pa.uint32(), pa.float32()
ids5, row5, row2 = pa.array(range(5), u32), pa.array([b"abcd"] * 5, pa.binary(4)), pa.array([b"ab"] * 5, pa.binary(2))
ROWS_FORGERIES = {
    "no columns": pa.RecordBatch.from_arrays([], names=[]),
    "no tokens": table(k0=row5),
    "tokens last": table(k0=row5, token=ids5),
    "signed tokens": table(token=ids5.cast(pa.int32()), k0=row5),
    "null token": table(token=pa.array([1, None, 3, 4, 5], u32), k0=row5),
    "null row": table(token=ids5, k0=pa.array([b"abcd"] * 4 + [None], pa.binary(4))),
    "rows of varying width": table(token=ids5, k0=row5.cast(pa.binary())),
    "rows of numbers": table(token=ids5, k0=ids5),
    "nested": table(token=ids5, k0=pa.array([{"a": 1}] * 5)),
    "fewer rows": table(token=ids5[:4], k0=row5[:4]),
    "wider rows": table(token=ids5, k0=pa.array([b"abcde"] * 5, pa.binary(5))),
    "tokens twice": pa.RecordBatch.from_arrays([ids5, ids5], names=["token", "token"]),
    "columns twice": pa.RecordBatch.from_arrays([ids5, row2, row2], names=["token", "k0", "k0"]),
    "an END": table(logits=pa.array([[1.0]] * 5, pa.list_(f32)), checkpoint=pa.array([b""] * 5, pa.large_binary())),
}
END_FORGERIES = {
    "doubles": table(logits=pa.array([[1.0]], pa.list_(pa.float64())), checkpoint=pa.nulls(1, pa.large_binary())),
    "null logit": table(logits=pa.array([[1.0, None]], pa.list_(f32)), checkpoint=pa.nulls(1, pa.large_binary())),
    "two rows": table(logits=pa.array([[1.0], [2.0]], pa.list_(f32)), checkpoint=pa.nulls(2, pa.large_binary())),
    "other order": table(checkpoint=pa.nulls(1, pa.large_binary()), logits=pa.array([[1.0]], pa.list_(f32))),
    "no checkpoint column": table(logits=pa.array([[1.0]], pa.list_(f32))),
    "fewer logits": table(logits=pa.array([[1.0]], pa.list_(f32)), checkpoint=pa.nulls(1, pa.large_binary())),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ROWS_FORGERIES)
def test_a_sealed_table_that_is_not_rows_is_refused(name, compression):
    block = rows_block(5, (4,))
    assert damage_of(decode, Forger(ROWS_FORGERIES[name], compression).encode(block), block.id) is Damage.NOT_ARROW


@pytest.mark.parametrize("name", END_FORGERIES)
def test_a_sealed_table_that_is_not_an_end_is_refused(name):
    block = end_block(2, None)
    assert damage_of(decode, Forger(END_FORGERIES[name]).encode(block), block.id) is Damage.NOT_ARROW


def test_a_sealed_replay_with_rows_is_refused():
    block = replay_block(5)
    assert damage_of(decode, Forger(table(token=ids5, k0=row5)).encode(block), block.id) is Damage.NOT_ARROW


class Repeater(BlockEncoder):
    """Seals a file with the record batch twice."""

    def _write(self, batch, width):
        once = super()._write(batch, width)
        schema, sink = pa.ipc.open_file(pa.py_buffer(once)).schema, pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            for _ in range(2):
                writer.write_batch(batch, custom_metadata={block_header.SEAL_NAME: block_header.Seal().text})
        return np.frombuffer(bytearray(sink.getvalue()), np.uint8)


def test_a_sealed_file_with_two_record_batches_is_refused():
    block = rows_block()
    assert damage_of(decode, Repeater().encode(block), block.id) is Damage.NOT_ARROW


@pytest.mark.parametrize("name", ["beyond the end", "backwards"])
def test_a_sealed_checkpoint_that_lies_outside_its_buffer_is_refused(name):
    block = end_block(None, 4)
    # the offsets of a good file, changed before it is sealed: an int64 0 and an int64 4
    ends = {"beyond the end": (0, 1 << 40), "backwards": (4, 0)}[name]

    class Liar(BlockEncoder):
        def _write(self, batch, width):
            file = super()._write(batch, width)
            at = file.tobytes().rindex(struct.pack("<qq", 0, 4) + block.checkpoint.tobytes())
            file[at : at + 16] = np.frombuffer(struct.pack("<qq", *ends), np.uint8)
            return file

    assert damage_of(decode, Liar().encode(block), block.id) is Damage.NOT_ARROW


def test_token_ids_that_a_compressor_left_alone_can_be_peeked_at():
    header = block_header.Header.of(rows_block(), rows=5, compression="zstd")
    stored = struct.pack("<q", -1) + np.arange(5, dtype=np.uint32).tobytes() + b"what follows"
    assert np.frombuffer(block_file._unpacked(memoryview(stored), header), np.uint32, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"format":"erllama-block"}',
        b'{"format":"erllama-block","version":2}',
        b'{"format":"erllama-block","version":1,"kind":"rows"}',
        b"\xff\xfe",
    ],
    ids=["empty", "null", "deep", "no version", "another version", "fields missing", "not utf-8"],
)
def test_a_header_that_is_not_ours_is_refused(text):
    assert damage_of(block_header.Header.parse, text) is Damage.NOT_ARROW


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", -1),
        ("start", True),
        ("rows", 6),
        ("rows", "5"),
        ("kind", "cols"),
        ("key", None),
        ("created_s", 1),
        ("compression", 3),
        ("odd", 1),
    ],
)
def test_a_header_with_a_wrong_field_is_refused(field, value):
    good = json.loads(block_header.Header.of(rows_block(), rows=5, compression=None).text(1024))
    assert block_header.Header.parse(json.dumps(good).encode()).rows == 5
    assert damage_of(block_header.Header.parse, json.dumps(good | {field: value}).encode()) is Damage.NOT_ARROW


# ---- blocks that contradict themselves


TOKENS = np.arange(5, dtype=np.uint32)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (replace(rows_block(), tokens=TOKENS[:4]), "4 token ids, 5 in the name"),
        (replace(rows_block(), tokens=TOKENS.astype(np.int64)), "uint32"),
        (replace(rows_block(), columns=("k0",)), "1 column names, 3 columns"),
        (replace(rows_block(), columns=("k0", "v0", "k0")), "names repeat"),
        (replace(rows_block(), columns=("k0", "v0", "token")), "names repeat"),
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
