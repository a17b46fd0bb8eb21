"""What the first format left on tiers: the bytes of a ROWS of three tokens, and the name of an
object of today as it was then.
"""

from __future__ import annotations

import base64
import zlib

from cache_store.format.block import BlockId

_PACKED = (
    "c-rk(&2AGh5O$hu2&j}jAk+hgXiq(aviACCT~UcX0a7m<BYSPDQMTD?la@xnt8m~2sCWp(ks}Yn9mcy3jlz$(lZpH@KOWoToo|$r)6*9(F+$&g;s~J_dAf)8"
    "P#;BT05hOY@27kh`d*Mf@A)~Xp?UcLdaoP6JPtbFy-r+JpQ}Z3l-Rl~)wz12%c__rqvXog^GP*Jj_@d%PG$y7>gv@TG<8+^1vJMQmDJ!&Sj;o5waQX#m@1U!"
    "R%k7h611=w=gd&X;b$GgMr48up$T}pP_><TU(DIUYR;W2a_+L+NJd1?3vRgNg^&d?x*(Y}hFXa=<$_3Xq=;~u2`j<Z)Gomh*E!cjWX@&O!QRq<B&F6lrZUF_"
    "70M`Tl_JDpLuHX-%ZM>r<br9c!O?u7YB&>Ne3Z<_i)w0T^W-QSwbySZR?U56lA<aNtk9Q}(#J<*U<%MKtQmtT7A$S)Fa<?*eo@<b8`RllS^E1g%SxHCUM?)y"
    "69~1g%yR4>1Pj3f8`Kn>xJhYOe1=7O>*M<REQ2#B>olfH5|uhiA*|R)A{|6OFP!B(c{|+FmI8SgxDPEP|6!B-z;~gQ(9#wr&<$V^3=cfkJPa~VJJ7Dc=pE<*"
    "qR`jB*iFIi6X^Xs2Cc`UI}JL;0mIOaA0Mx+^FEsl1k4+Nv=96+=sYfd27uc~E82s#EjGsBch8HuJ@gH=*m;0%>36tz6ZU<78;=$YpW@+}U1jNUlg|R@jm*}N"
    "tF0*IbR}9dq-i=_s7cwR=P_5Akb)AHI!u_<V4Z3OIa;W~nN+s>w5FJFndMFqo0{Bl18EJ=SGY98Tw~UrfAwy2t4d!3_QQRA4R{mo-CetPAN`qj!x(SK<BhfZ"
    "8~PRhU`^KD*cbf+|7e8Jhr0-Ubm3#@Mp5K9jiPQpLY=4|?esd`=G|B4+J*0^-@IZR&fi1N!dtKE-!N+Zed)C0!7n%8*3ND1+}6%5{U5b62gOPA-{J>vgfZ>"
)
VERSION_1_FILE = zlib.decompress(base64.b85decode(_PACKED))


def version_1_name(id: BlockId) -> str:
    return id.name.replace(".v2.", ".")
