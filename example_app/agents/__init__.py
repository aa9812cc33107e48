"""The agents. Each is written to be read on its own."""

from .api_key import ApiKey
from .audit_log import AuditLog
from .flaky import Flaky
from .moderator import Moderator
from .pii_redactor import PiiRedactor
from .waf import Waf

__all__ = ["ApiKey", "AuditLog", "Flaky", "Moderator", "PiiRedactor", "Waf"]
