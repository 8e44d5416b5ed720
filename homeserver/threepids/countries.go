package threepids

import "strings"

// plan is how numbers are dialled in a country: its code, the digit before national numbers, and the prefix of calls
// abroad.
type plan struct{ code, trunk, abroad string }

// numbering is the plans by ISO 3166-1 code: the country's code (ITU-T E.164), then the trunk prefix where it is not 0
// ("-": none), then the international prefix where it is not 00 (ITU-T E.164 annexes on dialling procedures).
const numbering = `AC:247:- AD:376:- AE:971 AF:93 AG:1:1:011 AI:1:1:011 AL:355 AM:374 AO:244:- AR:54 AS:1:1:011 AT:43
AU:61:0:0011 AW:297:- AX:358 AZ:994 BA:387 BB:1:1:011 BD:880 BE:32 BF:226:- BG:359 BH:973:- BI:257:- BJ:229:- BL:590
BM:1:1:011 BN:673:- BO:591 BQ:599:- BR:55 BS:1:1:011 BT:975:- BW:267:- BY:375:8:810 BZ:501:- CA:1:1:011 CC:61:0:0011 CD:243
CF:236:- CG:242:- CH:41 CI:225:- CK:682:- CL:56:- CM:237:- CN:86 CO:57 CR:506:- CU:53:0:119 CV:238:- CW:599:- CX:61:0:0011
CY:357:- CZ:420:- DE:49 DJ:253:- DK:45:- DM:1:1:011 DO:1:1:011 DZ:213 EC:593 EE:372:- EG:20 EH:212 ER:291 ES:34:- ET:251
FI:358 FJ:679:- FK:500:- FM:691:- FO:298:- FR:33 GA:241 GB:44 GD:1:1:011 GE:995 GF:594 GG:44 GH:233 GI:350:- GL:299:- GM:220:-
GN:224:- GP:590 GQ:240:- GR:30:- GT:502:- GU:1:1:011 GW:245:- GY:592:-:001 HK:852:-:001 HN:504:- HR:385 HT:509:- HU:36:06
ID:62:0:001 IE:353 IL:972 IM:44 IN:91 IO:246:- IQ:964 IR:98 IS:354:- IT:39:- JE:44 JM:1:1:011 JO:962 JP:81:0:010 KE:254:0:000
KG:996 KH:855:0:001 KI:686 KM:269:- KN:1:1:011 KP:850 KR:82:0:001 KW:965:- KY:1:1:011 KZ:7:8:810 LA:856 LB:961 LC:1:1:011
LI:423 LK:94 LR:231 LS:266:- LT:370 LU:352:- LV:371:- LY:218 MA:212 MC:377 MD:373 ME:382 MF:590 MG:261 MH:692:1:011 MK:389
ML:223:- MM:95 MN:976:0:001 MO:853:- MP:1:1:011 MQ:596 MR:222:- MS:1:1:011 MT:356:- MU:230:-:020 MV:960:- MW:265 MX:52:- MY:60
MZ:258:- NA:264 NC:687:- NE:227:- NF:672:- NG:234:0:009 NI:505:- NL:31 NO:47:- NP:977 NR:674:- NU:683:- NZ:64 OM:968:- PA:507:-
PE:51 PF:689:- PG:675:- PH:63 PK:92 PL:48:- PM:508 PR:1:1:011 PS:970 PT:351:- PW:680:- PY:595 QA:974:- RE:262 RO:40 RS:381
RU:7:8:810 RW:250:- SA:966 SB:677:- SC:248:- SD:249 SE:46 SG:65:-:000 SH:290:- SI:386 SJ:47:- SK:421 SL:232 SM:378:- SN:221:-
SO:252 SR:597:- SS:211 ST:239:- SV:503:- SX:1:1:011 SY:963 SZ:268:- TA:290:- TC:1:1:011 TD:235:- TG:228:- TH:66:0:001 TJ:992:8:810
TK:690:- TL:670:- TM:993:8:810 TN:216:- TO:676:- TR:90 TT:1:1:011 TV:688:- TW:886:0:002 TZ:255:0:000 UA:380 UG:256:0:000
US:1:1:011 UY:598 UZ:998:- VA:39:- VC:1:1:011 VE:58 VG:1:1:011 VI:1:1:011 VN:84 VU:678:- WF:681:- WS:685:- XK:383 YE:967 YT:262
ZA:27 ZM:260 ZW:263`

var countries, codes = readNumbering()

func readNumbering() (map[string]plan, map[string]bool) {
	plans, codes := map[string]plan{}, map[string]bool{}
	for entry := range strings.FieldsSeq(numbering) {
		parts := strings.Split(entry, ":")
		p := plan{code: parts[1], trunk: "0", abroad: "00"}
		if len(parts) > 2 {
			p.trunk = strings.TrimSuffix(parts[2], "-")
		}
		if len(parts) > 3 {
			p.abroad = parts[3]
		}
		plans[parts[0]], codes[p.code] = p, true
	}
	return plans, codes
}
