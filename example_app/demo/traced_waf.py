"""The firewall's service with its spans on stdout: ``uvicorn --factory example_app.demo.traced_waf:app``."""

from starlette.types import ASGIApp

from .. import waf_service
from .tracing import PipeExporter, trace_into


def app() -> ASGIApp:
    """The service, once its spans go somewhere."""
    trace_into(PipeExporter(), "waf")
    return waf_service.app
