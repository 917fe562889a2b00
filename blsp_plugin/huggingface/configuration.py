"""What an exported model is made of, as JSON.

Authors
 * The blsp_plugin team 2026
"""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from blsp_plugin import adapters
from blsp_plugin.errors import BadInput

__all__ = ["BLSPConfig", "build_adapter"]


class BLSPConfig(PreTrainedConfig):
    """Encoder + adapter + LLM, as `export_to_transformers` writes them.

    Arguments
    ---------
    audio_config : dict or transformers.WhisperConfig
        Of the speech encoder.
    text_config : dict or transformers.PreTrainedConfig
        Of the LLM.
    adapter : str
        A class of `blsp_plugin.adapters`.
    adapter_arguments : dict
        Its constructor's.
    audio_token_id : int
        Stands in ``input_ids`` where a speech embedding goes.
    pad_to_30s : bool
        See `WhisperEncoder`.
    keep_in_float32 : list of str
        Parts ("encoder", "adapter") that stay in float32 whatever dtype the
        LLM is opened in.
    prompt : dict
        ``content``, ``template``, ``system`` and ``chat_options`` of the
        `Prompt` that the adapter was trained with. For the record: the
        processor has them in its chat template.

    Example
    -------
    >>> config = BLSPConfig(adapter="ConvAdapter", audio_token_id=32000)
    >>> config.model_type, config.audio_config.model_type
    ('blsp', 'whisper')
    """

    model_type = "blsp"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(
            config_class=AutoConfig, model_type="whisper"
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig, model_type="llama"
        ),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    adapter: str = "ConvAdapter"
    adapter_arguments: dict | None = None
    audio_token_id: int | None = None
    pad_to_30s: bool = False
    keep_in_float32: list[str] | None = None
    prompt: dict | None = None


def build_adapter(name, arguments):
    """Make an adapter, with fresh weights.

    Arguments
    ---------
    name : str
        A class of `blsp_plugin.adapters`.
    arguments : dict
        Its constructor's.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    BadInput
        If there is no such adapter.

    Example
    -------
    >>> build_adapter("ConvAdapter", {"input_size": 4, "output_size": 8}).up
    Linear(in_features=512, out_features=8, bias=False)
    """
    if name not in adapters.__all__:
        raise BadInput(
            f"adapter {name!r}: not one of {', '.join(adapters.__all__)}; "
            "install the version of blsp_plugin that exported it"
        )
    return getattr(adapters, name)(**arguments)
