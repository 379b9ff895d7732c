"""The options of ``mcp.Client``, which are handed through to each session."""

from collections.abc import Sequence
from typing import TypedDict

import mcp_types
from mcp.client import CacheConfig, ClientExtension
from mcp.client.client import ConnectMode
from mcp.client.session import (
    ElicitationFnT,
    ListRootsFnT,
    LoggingFnT,
    MessageHandlerFnT,
    SamplingFnT,
)

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """As ``mcp.Client`` describes them."""

    raise_exceptions: bool
    read_timeout_seconds: float | None
    sampling_callback: SamplingFnT | None
    sampling_capabilities: mcp_types.SamplingCapability | None
    list_roots_callback: ListRootsFnT | None
    logging_callback: LoggingFnT | None
    log_level: mcp_types.LoggingLevel | None
    message_handler: MessageHandlerFnT | None
    client_info: mcp_types.Implementation | None
    mode: ConnectMode
    prior_discover: mcp_types.DiscoverResult | None
    elicitation_callback: ElicitationFnT | None
    input_required_max_rounds: int
    extensions: Sequence[ClientExtension] | None
    cache: CacheConfig | None
