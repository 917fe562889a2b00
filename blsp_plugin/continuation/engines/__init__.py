"""Engines: what writes the responses, behind one interface.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.continuation.engines.base import Engine, Refused, Request
from blsp_plugin.continuation.engines.casing import CasingEngine
from blsp_plugin.continuation.engines.hf import HFEngine
from blsp_plugin.continuation.engines.server import ServerEngine
from blsp_plugin.continuation.engines.transcript import TranscriptEngine
from blsp_plugin.continuation.engines.vllm_offline import VLLMEngine

__all__ = [
    "CasingEngine",
    "Engine",
    "HFEngine",
    "Refused",
    "Request",
    "ServerEngine",
    "TranscriptEngine",
    "VLLMEngine",
]
