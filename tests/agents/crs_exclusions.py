"""An exclusion, as the page shows it. Import it where the OWASP Core Rule Set is installed."""

from asgi_agents.agents import ModSecurity

# What is written into a comment is no SQL: the rule is not for that field of that path.
before = r"""
SecRule REQUEST_FILENAME "@streq /comments" \
    "id:10001,phase:1,pass,nolog,ctl:ruleRemoveTargetById=942100;ARGS:comment"
"""
waf = ModSecurity(crs="/usr/share/modsecurity-crs", before=before)
