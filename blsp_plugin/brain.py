"""The training step of BLSP: its normalisation, logging and checkpoints.

What differs from SpeechBrain's own `Brain`, and why:

* The loss is a sum over response tokens; the gradient is divided once, by the
  number of response tokens of all ranks and all accumulation steps. (The host
  averages means of micro-batches and drops the remainder of an epoch.)
* No DDP wrapper: only the adapter learns, so its gradients are summed over
  the ranks once a step. That is exact with any number of batches a rank,
  accumulates without tricks, and no rank hangs because its batch was empty.
* Frozen parts get no optimizer state and no place in a checkpoint.
* Validation is sharded over the ranks, and its sums are added up.

Authors
 * The blsp_plugin team 2026
"""

import time
from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.seed import seed_everything

from blsp_plugin.bad_rows import BadRows
from blsp_plugin.checkpoints import (
    BaseGuard,
    RandomState,
    SavedDict,
    base_fingerprints,
)
from blsp_plugin.distributed import ranks, sum_over_ranks
from blsp_plugin.losses import TeacherStates, response_loss
from blsp_plugin.model import BLSP, ResponseStates
from blsp_plugin.probes import Probes, record_probes
from blsp_plugin.speech import SpeechEmbeddings

__all__ = ["AlignmentBrain", "Predictions"]

logger = get_logger(__name__)


class Predictions(NamedTuple):
    """What the LLM makes of a batch.

    Arguments
    ---------
    speech : SpeechEmbeddings
        The clips as the LLM takes them.
    states : ResponseStates or None
        Where it predicts the response; None where no loss asks for it.
    teacher : TeacherStates or TeacherTopK or None
        What it makes of the transcripts there.
    """

    speech: SpeechEmbeddings
    states: ResponseStates
    teacher: TeacherStates


class AlignmentBrain(sb.Brain):
    """Trains an adapter to make a frozen LLM treat speech as its transcript.

    ``modules`` are ``encoder``, ``adapter`` and ``llm``; ``hparams`` holds
    ``losses`` (a list, see `blsp_plugin.losses`), ``prompt``, ``lr_annealing``
    (a partial of a SpeechBrain scheduler that takes ``num_training_steps``),
    ``number_of_epochs``, ``train_logger``, ``output_folder``,
    ``max_rejected``, ``probe_rows`` (rows of the validation set whose greedy
    continuations are compared), ``best_by``, and maybe ``lora``. Losses that
    learn are trained, and kept in checkpoints, as the adapter is.

    Arguments
    ---------
    *args, **kwargs
        Those of `speechbrain.Brain`.
    """

    def __init__(self, modules, *args, hparams, checkpointer=None, **kwargs):
        losses = hparams["losses"]
        learn = [x for x in losses if isinstance(x, torch.nn.Module)]
        learn = {f"loss_{loss.name}": loss for loss in learn}
        super().__init__(
            {**modules, **learn},
            *args,
            hparams=hparams,
            checkpointer=checkpointer,
            **kwargs,
        )
        self.input_losses = [loss for loss in losses if loss.on_input]
        self.response_losses = [loss for loss in losses if not loss.on_input]
        self.model = self._assemble()
        self.window_tokens = 0
        self.probed = ()
        self.bad_rows = BadRows(
            self.hparams.output_folder,
            self.hparams.max_rejected,
            self.nonfinite_patience,
        )
        if self.optimizer_step_limit is not None:
            # The toolkit's command line leaves it a text.
            self.optimizer_step_limit = int(self.optimizer_step_limit)
        self.train_stats = SavedDict()
        # What this epoch has added up so far, over all its restarts.
        self.running = SavedDict(loss=0.0, tokens=0, seconds=0.0, elapsed=0.0)
        self.valid_stats = {}
        self.base = base_fingerprints(self.model, self.hparams.prompt)
        if self.checkpointer is not None:
            if hparams.get("lora") is not None:
                learn["lora"] = hparams["lora"]
            self.checkpointer.add_recoverables(learn)
            self.checkpointer.add_recoverable("base", BaseGuard(self.base))
            self.checkpointer.add_recoverable("random", RandomState())
            self.checkpointer.add_recoverable("train_stats", self.train_stats)
            self.checkpointer.add_recoverable("running", self.running)

    def _assemble(self):
        modules = self.modules
        return BLSP(modules["encoder"], modules["adapter"], modules["llm"])

    # Data and optimizer

    def make_dataloader(
        self, dataset, stage, ckpt_prefix="dataloader-", **loader_kwargs
    ):
        """Make a loader whose batch sampler deals batches to ranks itself."""
        loader = sb.dataio.dataloader.make_dataloader(dataset, **loader_kwargs)
        # Before and after training the validation set is "tested".
        name = "train" if stage == sb.Stage.TRAIN else "valid"
        self.bad_rows.of[name] = len(dataset)
        if stage == sb.Stage.TRAIN:
            self.train_sampler = loader.batch_sampler
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable(
                    f"{ckpt_prefix}{stage.name}", loader
                )
        return loader

    def on_fit_start(self):
        """Begin with the seed; a checkpoint, if there is one, goes on."""
        # What was drawn before depends on what the caches held already.
        seed_everything(self.hparams.seed)
        super().on_fit_start()

    def init_optimizers(self):
        """Optimise what learns, on a schedule over the whole training."""
        params = self.trainable()
        self.optimizer = self.opt_class(params)
        self.optimizers_dict = {"opt_class": self.optimizer}
        window = self.grad_accumulation_factor
        steps = -(-len(self.train_sampler) // window)
        steps *= self.hparams.number_of_epochs
        if self.optimizer_step_limit is not None:
            steps = min(steps, self.optimizer_step_limit)
        # One more than there are: the last step still learns something.
        self.lr_annealing = self.hparams.lr_annealing(
            num_training_steps=steps + 1
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)
            self.checkpointer.add_recoverable("scheduler", self.lr_annealing)

    @property
    def needs_teacher(self):
        """Whether a loss compares with what the LLM makes of the text."""
        return any(loss.teacher for loss in self.response_losses)

    @property
    def needs_twins(self):
        """Whether training asks for the transcripts."""
        return self.needs_teacher or bool(self.input_losses)

    def trainable(self):
        """The parameters that learn.

        Returns
        -------
        list of torch.nn.Parameter
        """
        return [p for p in self.modules.parameters() if p.requires_grad]

    def _wrap_distributed(self):
        """Start every rank from rank 0's adapter; nothing is wrapped."""
        self.model = self._assemble()  # modules may have been compiled
        if ranks()[1] > 1:
            for param in self.trainable():
                torch.distributed.broadcast(param.data, 0)

    # Forward and loss

    def compute_forward(self, batch, stage):
        """Run the LLM on the clips and, where needed, on the text twins.

        Arguments
        ---------
        batch : SpeechBatch
            At least one row.
        stage : speechbrain.Stage

        Returns
        -------
        Predictions
        """
        batch = batch.to(self.device)
        training = stage == sb.Stage.TRAIN
        # Tokens to give each clip, and what is hidden of it.
        how = (
            batch.packed.speech_tokens,
            self.hparams.state_masks if training else (),
        )
        # The LLM will not be run: what it would be given need not be made.
        self.model.adapter.only_listens = training and not self.response_losses
        if batch.states is None:
            speech = self.model.embed_speech(batch.mel, batch.mel_lengths, *how)
        else:
            speech = self.model.adapt(batch.states, batch.state_lengths, *how)
        if training and not self.response_losses:
            return Predictions(speech, None, None)
        states = self.model(batch.packed, speech)
        teacher = batch.teacher if training else None
        if teacher is None and (self.needs_teacher or not training):
            teacher = self.model.teach(batch.twin)
        return Predictions(speech, states, teacher)

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the losses over the batch's response tokens.

        Arguments
        ---------
        predictions : Predictions
        batch : SpeechBatch
        stage : speechbrain.Stage

        Returns
        -------
        torch.Tensor
            Scalar; not divided by anything.
        """
        speech, states, teacher = predictions
        llm = self.model.llm
        total = torch.zeros((), device=self.device)
        if self.response_losses:
            total = response_loss(self.response_losses, states, teacher, llm)
        counts = batch.packed.response_tokens.to(self.device)
        for loss in self.input_losses:
            value = loss(speech, batch.transcripts, counts, self.model.table)
            total = total + loss.weight * value
        if stage != sb.Stage.TRAIN:
            self.probes.add(batch, predictions, float(total))
        return total

    def evaluate_batch(self, batch, stage):
        """Evaluate a batch; the loss returned is per response token."""
        self.bad_rows.rejected(batch)
        if not batch.ids:
            return torch.tensor(0.0)
        loss = super().evaluate_batch(batch, stage)
        return loss / int(batch.packed.response_tokens.sum())

    # The training step

    def fit_batch(self, batch):
        """Accumulate a batch's gradient; step where a window is full.

        Arguments
        ---------
        batch : SpeechBatch

        Returns
        -------
        torch.Tensor
            Loss per response token of this batch, detached.
        """
        self.bad_rows.rejected(batch)
        last = self.step == len(self.train_sampler) or (
            self.debug and self.step == self.debug_batches
        )
        should_step = last or self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        loss, outputs, tokens = torch.tensor(0.0), None, 0
        if batch.ids:
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            tokens = int(batch.packed.response_tokens.sum())
            if torch.isfinite(loss):
                self.scaler.scale(loss).backward()
                self.window_tokens += tokens
                self.running["loss"] += loss.item()
                self.running["tokens"] += tokens
                self.running["seconds"] += batch.seconds
            else:
                self.bad_rows.nonfinite(batch, loss, self.optimizer_step)
        if should_step:
            self.optimizers_step()
        now = time.monotonic()
        self.running["elapsed"] += now - self.clock
        self.clock = now
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach().cpu() / max(1, tokens)

    def optimizers_step(self):
        """Divide by the tokens of all ranks and micro-batches, then step."""
        tokens = torch.tensor(self.window_tokens, device=self.device)
        tokens = int(sum_over_ranks(tokens))
        self.window_tokens = 0
        if tokens == 0:
            self.zero_grad(set_to_none=True)
            return
        params = self.trainable()
        for param in params:
            if param.grad is None:  # this rank had no valid row
                param.grad = torch.zeros_like(param)
        flat = torch.cat([param.grad.flatten() for param in params])
        flat = sum_over_ranks(flat) / tokens
        parts = flat.split([param.numel() for param in params])
        for param, grad in zip(params, parts, strict=True):
            param.grad.copy_(grad.view_as(param))
        self.lr_annealing(self.optimizer)
        super().optimizers_step()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Save between windows only: gradients are in no checkpoint."""
        due = super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )
        between = self.step % self.grad_accumulation_factor == 0
        return due and (between or self.step == len(self.train_sampler))

    # Stages

    def on_stage_start(self, stage, epoch=None):
        """Reset what the stage adds up."""
        if stage == sb.Stage.TRAIN:
            self.clock = time.monotonic()
            self.window_tokens = 0
            if self.step == 0:  # else an epoch goes on
                self.running.update(dict.fromkeys(self.running, 0))
        else:
            self.probes = Probes(self.model, self.probed)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; after validation, keep the best checkpoint."""
        if stage == sb.Stage.TRAIN:
            sums = [self.running[k] for k in ("loss", "tokens", "seconds")]
            sums = torch.tensor(sums, dtype=torch.float64, device=self.device)
            loss, tokens, seconds = sum_over_ranks(sums).tolist()
            self.train_stats["loss"] = loss / max(1, tokens)
            self.train_stats["audio_seconds_per_second"] = (
                seconds / self.running["elapsed"]
            )
            return
        self.valid_stats, probes = self.probes.summary()
        again = stage == sb.Stage.TEST and self.optimizer_step  # the best one
        if if_main_process() and not (self.debug or again):
            folder = self.hparams.output_folder
            record_probes(folder, self.optimizer_step, probes)
        stats = {"stats_meta": {"steps": self.optimizer_step}}
        if stage == sb.Stage.VALID:
            lr = self.optimizer.param_groups[0]["lr"]
            stats["stats_meta"].update(epoch=epoch, lr=lr)
            stats["train_stats"] = self.train_stats
            stats["valid_stats"] = self.valid_stats
        else:
            stats["test_stats"] = self.valid_stats
        # On every rank: the logger writes on the main one and synchronises.
        self.hparams.train_logger.log_stats(**stats)
        if stage == sb.Stage.VALID and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta=self.valid_stats, min_keys=[self.hparams.best_by]
            )

    def metrics(self, start):
        """Numbers of a finished training, for ``metrics.json``.

        Arguments
        ---------
        start : dict of float
            Validation before the first step.

        Returns
        -------
        dict of float
            Flat. All but ``start.`` are of the checkpoint that was kept.
        """
        metrics = {f"start.{name}": value for name, value in start.items()}
        metrics.update({f"end.{k}": v for k, v in self.valid_stats.items()})
        metrics.update({f"train.{k}": v for k, v in self.train_stats.items()})
        newest = self.checkpointer.find_checkpoint()
        metrics["checkpoint_bytes"] = sum(
            file.stat().st_size for file in newest.path.iterdir()
        )
        metrics["trainable_parameters"] = sum(
            param.numel() for param in self.trainable()
        )
        metrics["steps"] = self.optimizer_step
        metrics["rejected"] = len(self.bad_rows)
        return metrics
