"""vLLM in this process, for machines that stage 1 has to itself.

Authors
 * The blsp_plugin team 2026
"""

import os

import torch

from blsp_plugin.continuation.engines.base import Engine, Refused, own_ids
from blsp_plugin.decoding import Generation
from blsp_plugin.errors import BadInput

__all__ = ["VLLMEngine"]


class VLLMEngine(Engine):
    """Runs the LLM through vLLM's offline interface.

    Arguments
    ---------
    source : str
        Folder or hub id of the LLM.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the same LLM.
    dtype : str
        Of its weights.
    window : int
        Rows given to vLLM at once; it makes its own batches of them.
    **options : dict
        Passed on to ``vllm.LLM``: tensor_parallel_size,
        data_parallel_size, max_model_len, gpu_memory_utilization,
        block_size, enforce_eager, ...
    """

    def __init__(
        self, source, tokenizer, dtype="bfloat16", window=2048, **options
    ):
        self.source = str(source)
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.window = window
        self.options = options
        self._llm = None

    def to(self, device):
        """Load the LLM; vLLM finds its devices by itself."""
        # Its own configuration silences everybody else's logs.
        os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
        try:
            # It has an environment of its own: see the Makefile.
            import vllm
        except ImportError as error:
            raise BadInput(
                "the vllm engine needs vLLM, which has an environment of its "
                "own: make vllm-env"
            ) from error
        self._llm = vllm.LLM(
            model=self.source, dtype=self.dtype, **self.options
        )
        if torch.distributed.is_initialized():
            # vLLM made a group of this process alone, and the toolkit now
            # asks the environment which process of it this is.
            os.environ.setdefault("RANK", "0")
            os.environ.setdefault("LOCAL_RANK", "0")

    def plan(self, requests):
        """All of a window: vLLM does the batching."""
        return [requests] if requests else []

    def generate(self, batches):
        """One group a window: see `Engine.generate`."""
        import vllm

        longest = self._llm.llm_engine.model_config.max_model_len
        for batch in batches:
            # One that does not fit would take all others down with it.
            fit, refused = [], []
            for r in batch:
                size = len(r.prompt_ids) + r.behaviour.max_new_tokens
                (fit if size <= longest else refused).append(r)
            if refused:
                answer = Refused(f"prompt too long (for {longest} tokens)")
                yield [(request, answer) for request in refused]
            batch = fit
            if not batch:
                continue
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(r.prompt_ids)} for r in batch],
                [
                    vllm.SamplingParams(
                        temperature=0.0,
                        max_tokens=r.behaviour.max_new_tokens,
                        stop=r.behaviour.stop,
                    )
                    for r in batch
                ],
                use_tqdm=False,
            )
            yield [
                (request, self._generation(request, output.outputs[0]))
                for request, output in zip(batch, outputs, strict=True)
            ]

    def fingerprint(self):
        """Name of the LLM: vLLM keeps the weights to itself."""
        return f"unknown weights of {self.source} in {self.dtype}, by vLLM"

    def describe(self):
        """The LLM and vLLM's options: see `Engine.describe`."""
        return {
            "engine": type(self).__name__,
            "llm": self.fingerprint(),
            "options": self.options,
            "window": self.window,
        }

    def _generation(self, request, output):
        if output.finish_reason not in ("stop", "length"):
            raise BadInput(
                f"vLLM broke {request.key} off ({output.finish_reason}); run "
                "the same command again"
            )
        return Generation(
            own_ids(self.tokenizer, output.token_ids, request.behaviour.stop),
            output.text.strip(),
            output.finish_reason == "stop",
        )
