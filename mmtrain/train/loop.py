"""The training loop: batches in, updates, logs, checkpoints and evaluations out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.batch import SampleBatch
from mmtrain.data.numbered import NumberedData
from mmtrain.optim import OptimConfig, clip_gradients, lr_factor
from mmtrain.train.config import TrainConfig
from mmtrain.train.guard import Guard, TrainingStopped, Verdict
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.state import RunState
from mmtrain.train.straggler import StragglerWatch
from mmtrain.train.watchdog import Watchdog


class Clock:
    """Where the time between two log lines went."""

    def __init__(self) -> None:
        self.last_wait = 0.0
        """Seconds until the newest batch was there."""
        self.waited = 0.0
        """Seconds until batches were there, of all of them."""
        self._began = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: after a log line, a checkpoint or an evaluation."""
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[SampleBatch]) -> SampleBatch | None:
        """The next batch, None at the end; the time until it is there counts as waiting."""
        start = time.perf_counter()
        batch = next(batches, None)
        self.last_wait = time.perf_counter() - start
        self._waited += self.last_wait
        self.waited += self.last_wait
        return batch

    @property
    def passed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began

    def count(self, samples: int) -> None:
        """Note samples of a finished step."""
        self._samples += samples

    def figures(self) -> dict[str, float]:
        """Samples per second over all ranks, and the share of the time spent waiting for data."""
        passed = max(time.perf_counter() - self._start, 1e-9)
        return {
            "samples_per_second": self._samples / passed,
            "data_wait_fraction": self._waited / passed,
        }


@dataclass(kw_only=True)
class Loop:
    """Drives a run from its current step to its last one."""

    config: TrainConfig
    optim: OptimConfig
    state: RunState
    data: NumberedData[Any]
    total_steps: int
    guard: Guard
    log: MetricsLog | None
    """On the main rank only."""
    save: Callable[[], object]
    """Writes a checkpoint of the current state, or begins to. Collective."""
    background: BackgroundSave | None
    """Where `save` only begins: what there is to wait for."""
    evaluate: Callable[[], None]
    """Evaluates the current weights. Collective."""
    roll_back: Callable[[int], int | None]
    """Takes the weights of the newest checkpoint of a step or before -> its step. Collective."""
    watchdog: Watchdog
    """Told of every step, so that a rank that hangs is named."""
    evaluate_every: int | None = None
    """Steps between evaluations; the one after the last step is the caller's."""
    stragglers: StragglerWatch | None = None
    """Told of every step, so that a rank that is slow is named."""
    _rolled_back_to: int | None = field(default=None, init=False)

    def run(self) -> bool:
        """Train until the end, or until a signal asks to stop -> whether the end was reached.

        A checkpoint of the last step, or of the one that a signal came in, is written here.

        Raises:
            TrainingStopped: too many steps in a row had no finite loss or gradient.
            UsageError: too many samples cannot be used, or a checkpoint cannot be written.
        """
        saved_step, saved_time = self.state.step, time.monotonic()
        clock, batches = Clock(), self.data.iterate(self.state.step, self.total_steps)
        try:
            while (batch := clock.wait_for(batches)) is not None:
                verdict = self._step(batch, clock, save_due=self._is_due(saved_time))
                self._look_after(verdict, clock)
                done = self.state.step == self.total_steps
                judged = self._every(self.evaluate_every) and not done
                # What an evaluation might end, such as a full memory, must not cost the training.
                last = verdict.stop or done or judged
                if last or verdict.save or self._every(self.config.checkpoint_every):
                    with self.watchdog.busy("saving a checkpoint"):
                        self.save()
                        if last:
                            self._wait_for_save()
                    saved_step, saved_time = self.state.step, time.monotonic()
                    clock.restart()
                if verdict.stop and not done:
                    self._tell_data(clock)
                    return False
                if judged:
                    with self.watchdog.busy("evaluating"):
                        self.evaluate()
                    clock.restart()
        except TrainingStopped:  # on every rank: what is on its way gets there
            self._wait_for_save()
            raise
        finally:
            batches.close()
        assert saved_step == self.state.step == self.total_steps
        self._tell_data(clock)
        return True

    def _step(self, batch: SampleBatch, clock: Clock, *, save_due: bool) -> Verdict:
        """One update, its guard and its log line."""
        state, samples = self.state, self.data.samples_in(self.state.step)
        state.bad_samples.record(batch.bad, num_rows=samples, step=state.step)
        batch = batch.to(state.layout.device)
        state.optimizers.set_lr(
            lr_factor(state.step, total_steps=self.total_steps, config=self.optim)
        )
        scale = state.loss_scale
        factor = 1.0 if scale is None else scale.value
        loss = state.objective.step(state.schedule, batch, loss_scale=factor)
        norm = clip_gradients(
            state.stage_parameters().values(),
            self.optim.clip_norm,
            pp_group=state.layout.group("pp"),
            shared=state.objective.parameters().values(),
            loss_scale=factor,
        )
        verdict = self.guard.check(
            loss,
            norm,
            step=state.step,
            keys=batch.keys,
            can_overflow=scale is not None and scale.can_fall,
            save_due=save_due,
            save_failed=self.background is not None and self.background.failed,
        )
        if scale is not None and verdict.overflow:
            scale.overflowed()
        if verdict.update:
            if scale is not None:
                scale.updated()
            state.optimizers.step()
            state.objective.clamp()
            if state.ema is not None:
                state.ema.update(state.step)
        state.optimizers.zero_grad()
        state.step += 1
        state.samples_seen += samples
        state.loss = loss
        clock.count(samples)
        last = state.step == self.total_steps
        if self.log is not None and (self._every(self.config.log_every) or last):
            self.log.log(
                {
                    "step": state.step,
                    "epoch": batch.epoch,
                    "samples_seen": state.samples_seen,
                    "loss": loss.item(),
                    "lr": state.optimizers.lr,
                    "grad_norm": norm.item(),
                    **state.objective.figures(),
                    **({} if scale is None else {"loss_scale": factor}),
                    **clock.figures(),
                    **self.data.source_figures(state.step),
                    **self.data.work.figures(),
                }
            )
            clock.restart()
        return verdict

    def _look_after(self, verdict: Verdict, clock: Clock) -> None:
        """What a step asks for beside training."""
        if verdict.save_failed:
            self._wait_for_save()
        if verdict.roll_back:
            with self.watchdog.busy("rolling back"):
                self._roll_back()
        self.watchdog.beat(self.state.step)
        if self.stragglers is not None:
            for line in self.stragglers.step(clock.last_wait):
                self._say(line)

    def _tell_data(self, clock: Clock) -> None:
        """One table at the end: what the data cost."""
        for line in self.data.work.table(waited=clock.waited, passed=clock.passed):
            self._say(line)

    def _roll_back(self) -> None:
        self._wait_for_save()
        first_bad = self.state.step - self.config.max_bad_steps
        step = self.roll_back(first_bad)
        if step is None or step == self._rolled_back_to:
            why = (
                "there is no checkpoint before them"
                if step is None
                else (f"the weights of step {step}, the newest before them, were tried already")
            )
            raise TrainingStopped(
                f"train.max_bad_steps = {self.config.max_bad_steps} steps in a row had no finite "
                f"loss and gradient (from step {first_bad}), and {why}; the samples are named in "
                f"{self.guard.path}; lower optim.lr or lengthen the warm-up"
            )
        self._rolled_back_to = step
        self._say(
            f"steps {first_bad + 1} to {self.state.step} had no finite loss and gradient: going on "
            f"after them with the weights of step {step}"
        )

    def _say(self, line: str) -> None:
        if self.log is not None:
            self.log.say(line)

    def _wait_for_save(self) -> None:
        if self.background is not None:
            self.background.wait()

    def _every(self, interval: int | None) -> bool:
        return interval is not None and self.state.step % interval == 0

    def _is_due(self, saved_time: float) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - saved_time >= 60 * minutes
