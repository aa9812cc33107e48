"""The rules of ``ModSecurity`` that stand before and behind all others, so that what apps read is judged or refused."""

from typing import Final

#: What a request with a body is judged at, and no other: so that none is said to be XML that is empty.
PORT_WITH_BODY: Final = 80
#: The same with a body that is JSON, although nobody says so.
PORT_WITH_JSON: Final = 81
#: A request whose body is found to be unreadable beside the engine, which is not given it.
PORT_UNREADABLE: Final = 82
#: One that has more arguments than the engine may be given.
PORT_TOO_MANY: Final = 83
#: A multipart form, given as a form without parts: so that the line ends in its fields are judged.
PORT_WITH_FORM: Final = 84
#: One with XML that has a document type, which the engine is not given.
PORT_WITH_DOCTYPE: Final = 85
#: Those of which the engine is given no body. Where the rules let such a request pass, nobody can judge it.
NOT_GIVEN: Final = frozenset({PORT_UNREADABLE, PORT_TOO_MANY, PORT_WITH_DOCTYPE})
#: What stands before all other rules. A body that the engine can't read is refused: apps may read it in another way.
#: They also read a type behind blanks that HTTP has none of, such as those of Latin-1, and one that for them ends
#: at another sign than a semicolon.
BASE: Final = r"""
SecRule REQUEST_HEADERS:Content-Type "@rx ^application/(?:[!#$%&\x27*+.^_\x60|~0-9a-z-]*\+)?json" \
    "id:99101,phase:1,pass,nolog,t:none,t:lowercase,ctl:requestBodyProcessor=JSON"
SecRule SERVER_PORT "@eq 81" "id:99108,phase:1,pass,nolog,t:none,ctl:requestBodyProcessor=JSON"
SecRule SERVER_PORT "@eq 84" "id:99117,phase:1,pass,nolog,t:none,ctl:requestBodyProcessor=URLENCODED"
SecRule SERVER_PORT "@eq 82" \
    "id:99112,phase:1,deny,status:400,log,t:none,msg:'The request body can not be read'"
SecRule SERVER_PORT "@eq 83" \
    "id:99115,phase:1,deny,status:400,log,t:none,msg:'There are too many arguments'"
SecRule SERVER_PORT "@eq 85" \
    "id:99118,phase:1,deny,status:400,log,t:none,msg:'The XML has a document type'"
SecRule SERVER_PORT "@eq 80" "id:99106,phase:1,pass,nolog,t:none,chain"
    SecRule REQUEST_HEADERS:Content-Type "@rx ^[a-z]+/(?:[a-z0-9._-]+\+)?xml" \
        "t:none,t:lowercase,ctl:requestBodyProcessor=XML"
SecRule &REQUEST_HEADERS:Content-Type "@gt 1" \
    "id:99109,phase:1,deny,status:400,log,t:none,msg:'There are several content types'"
SecRule REQUEST_HEADERS:Content-Type "@rx ^[^\x21-\x7e]+[\x21-\x7e]" \
    "id:99113,phase:1,deny,status:400,log,t:none,msg:'The content type can not be read'"
SecRule REQUEST_HEADERS:Content-Type "!@rx ^[!#$%&\x27*+.^_\x60|~0-9A-Za-z/-]*[\x20\x09]*(?:;|$)" \
    "id:99116,phase:1,deny,status:400,log,t:none,msg:'The content type has a character that no type has'"
SecRule REQUEST_HEADERS:Content-Type "@rx ^multipart/.*charset(?!=\x22?(?:utf-8|us-ascii|iso-8859-1)\x22?\s*(?:;|$))" \
    "id:99110,phase:1,deny,status:400,log,t:none,t:lowercase,msg:'The charset of the form can not be read'"
SecRule REQUEST_HEADERS:Content-Type "@rx ^multipart/(?!form-data\s*(?:;|$))" \
    "id:99114,phase:1,deny,status:415,log,t:none,t:lowercase,msg:'The engine reads no multipart body but form-data'"
SecRule REQBODY_ERROR "!@eq 0" "id:99107,phase:2,deny,status:400,log,t:none,msg:'The request body can not be read'"
"""
# What the engine finds in a form that others may read in another way: a quoted boundary is nothing of that kind. In
# what stands before the first boundary, Starlette finds a boundary behind other text of a line.
_AMBIGUOUS: Final = (
    *("MULTIPART_LF_LINE", "MULTIPART_CRLF_LF_LINES", "MULTIPART_HEADER_FOLDING", "MULTIPART_INVALID_HEADER_FOLDING"),
    *("MULTIPART_INVALID_QUOTING", "MULTIPART_BOUNDARY_WHITESPACE", "MULTIPART_MISSING_SEMICOLON"),
    *("MULTIPART_INVALID_PART", "MULTIPART_DATA_BEFORE"),
)
#: How many steps an expression may take from one place of a text on. Up to there, the time for a text grows with the
#: square of its length. A word of 14,000 characters, such as base64, meets it at one rule of the Core Rule Set.
MATCH_LIMIT: Final = 20_000
#: What stands behind all other rules. A rule that has met a limit of the engine was passed over: that is what an
#: attacker would want, and a failure of the agent would let everybody open its breaker. So the request is refused.
#: Of two settings the engine takes the first: these hold where no rules say otherwise. Without, it would judge nothing.
END: Final = f"""
SecRuleEngine On
SecRequestBodyAccess On
SecPcreMatchLimit {MATCH_LIMIT}
SecPcreMatchLimitRecursion {MATCH_LIMIT}
SecRule {"|".join(_AMBIGUOUS)} "@gt 0" \\
    "id:99111,phase:2,deny,status:400,log,t:none,msg:'The form can be read in several ways'"
SecRule TX:/^MSC_/ "!@streq 0" "id:99102,phase:2,deny,log,t:none,msg:'A limit of the engine was met'"
SecRule TX:/^MSC_/ "!@streq 0" "id:99103,phase:3,deny,log,t:none,msg:'A limit of the engine was met'"
SecRule TX:/^MSC_/ "!@streq 0" "id:99104,phase:4,deny,log,t:none,msg:'A limit of the engine was met'"
"""
#: In addition, where responses are judged.
RESPONSES: Final = """
SecResponseBodyAccess On
SecResponseBodyMimeType text/plain text/html text/xml application/json application/problem+json
"""
#: The level, to be filled in. The first names are those of CRS 3, the others those of CRS 4.
PARANOIA: Final = (
    'SecAction "id:99105,phase:1,pass,nolog,t:none,setvar:tx.paranoia_level={0},'
    'setvar:tx.blocking_paranoia_level={0},setvar:tx.detection_paranoia_level={0}"'
)
