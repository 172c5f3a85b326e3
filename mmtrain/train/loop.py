"""The training loop: batches in, updates, logs, checkpoints and evaluations out."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.batch import SampleBatch
from mmtrain.data.numbered import NumberedData
from mmtrain.errors import FaultsFound, UsageError
from mmtrain.optim.config import OptimConfig
from mmtrain.parallel.compile import is_compiled
from mmtrain.ranks import num_ranks
from mmtrain.settings.counted import counted
from mmtrain.train.clock import Clock
from mmtrain.train.config import TrainConfig
from mmtrain.train.flags import Wishes
from mmtrain.train.garbage import GarbageCollection
from mmtrain.train.guard import Guard, TrainingStopped, Verdict
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.state import RunState
from mmtrain.train.straggler import StragglerWatch
from mmtrain.train.transfer import Transfer
from mmtrain.train.update import Step, take_step_of_run
from mmtrain.train.utilisation import Utilisation
from mmtrain.train.watchdog import Watchdog


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
    figures: Callable[[], Mapping[str, float]]
    """Of what goes on beside the loop, for a line of metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between evaluations; the one after the last step is the caller's."""
    utilisation: Utilisation | None = None
    """Says MFU and HFU, where the devices' peak is known."""
    stragglers: StragglerWatch | None = None
    """Told of every step, so that a rank that is slow is named."""
    _rolled_back_to: int | None = field(default=None, init=False)
    _transfer: Transfer = field(init=False)
    _first: int = field(default=-1, init=False)
    """Updates done before the first of this process."""
    _garbage: GarbageCollection = field(init=False)
    _unjudged: deque[Step] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self._transfer = Transfer(self.state.layout.device)
        self._garbage = GarbageCollection(self.config.gc_every)

    def run(self) -> bool:
        """Train until the end, or until a signal asks to stop -> whether the end was reached.

        A checkpoint of the last step, or of the one that a signal came in, is written here.

        Raises:
            TrainingStopped: too many steps in a row had no finite loss or gradient, or all steps.
            FaultsFound: the samples of an epoch do not add up.
            UsageError: too many samples cannot be used, or a checkpoint cannot be written.
        """
        with self._garbage:
            return self._run()

    def _run(self) -> bool:
        self._first = self.state.step
        saved_step, saved_time = self.state.step, time.monotonic()
        clock, batches = Clock(), self.data.iterate(self.state.step, self.total_steps)
        try:
            while (batch := clock.wait_for(batches)) is not None:
                step = self._step(batch, clock, save_due=self._is_due(saved_time))
                done = self.state.step == self.total_steps
                evaluates = self._every(self.evaluate_every) and not done
                saves = done or evaluates or self._every(self.config.checkpoint_every)
                logs = self._every(self.config.log_every) or done
                verdict = self._judge(all_steps=saves or logs)
                self.state.accounts.settle(self.data.plan, self.state.step)
                if logs:
                    self._log_step(step, clock)
                self._look_after(verdict, clock)
                # What an evaluation might end, such as a full memory, must not cost the training.
                last = verdict.stop or done or evaluates
                if saves or verdict.stop or verdict.save:
                    with self.watchdog.busy("saving a checkpoint"):
                        self.save()
                        if last:
                            self._wait_for_save()
                    saved_step, saved_time = self.state.step, time.monotonic()
                    clock.restart()
                if verdict.stop and not done:
                    self._tell_data(clock)
                    return False
                if evaluates:
                    with self.watchdog.busy("evaluating"), self._garbage.resting():
                        self.evaluate()
                    clock.restart()
        except (TrainingStopped, FaultsFound):  # on every rank: what is on its way gets there
            self._wait_for_save()
            raise
        finally:
            batches.close()
        assert saved_step == self.state.step == self.total_steps
        self._tell_data(clock)
        self._tell_held_back()
        return True

    def _step(self, batch: SampleBatch, clock: Clock, *, save_due: bool) -> Step:
        """Give the device one update, which is judged later."""
        number, failed = self.state.step, self.background is not None and self.background.failed
        begun = time.monotonic()
        step = take_step_of_run(
            self.state,
            batch,
            data=self.data,
            optim=self.optim,
            total_steps=self.total_steps,
            transfer=self._transfer,
            wishes=Wishes(
                stop=self.guard.told_to_stop,
                save=save_due,
                save_failed=failed,
                bad_samples=bool(batch.bad),
            ),
        )
        if number == self._first and is_compiled(self.state.stages):
            seconds = time.monotonic() - begun
            self._say(f"the first step took {seconds:,.1f} s, most of it for compiling")
        self.state.accounts.record(batch.taken)
        self._unjudged.append(step)
        clock.count(step.num_rows)
        if self.utilisation is not None:
            self.utilisation.see(batch)
        return step

    def _judge(self, *, all_steps: bool) -> Verdict:
        """What is to be done after the steps up to the one before the newest, so that the device
        always has one to work on; or after all of them, where that is asked for, the newest could
        be one bad step too many, or a checkpoint follows."""
        verdict = Verdict()
        while self._unjudged:
            newest = len(self._unjudged) == 1
            waits = all_steps or not self.guard.is_patient or verdict.stop or verdict.save
            if newest and not waits:
                break
            verdict = verdict | self._judge_step(self._unjudged.popleft())
        return verdict

    def _judge_step(self, step: Step) -> Verdict:
        said = step.flags.read()
        self.state.bad_samples.record(
            step.bad, num_rows=step.num_rows, step=step.number, anywhere=said.wishes.bad_samples
        )
        if said.nothing:
            raise UsageError(self.state.objective.nothing_told(step.keys))
        verdict = self.guard.judge(
            said, loss=step.loss, grad_norm=step.grad_norm, step=step.number, keys=step.keys
        )
        self.state.held_back = 0 if verdict.update else self.state.held_back + 1
        return verdict

    def _log_step(self, step: Step, clock: Clock) -> None:
        """The newest step's line. Collective; waits for the device."""
        self.state.objective.settle()
        if self.log is None:
            return
        state, phases = self.state, self.data.phases
        scale = {} if state.loss_scale is None else {"loss_scale": float(step.loss_scale)}
        speed = clock.figures()
        if self.utilisation is not None:
            speed |= self.utilisation.figures(speed["samples_per_second"])
        self.log.log(
            {
                "step": state.step,
                "epoch": step.epoch,
                **({"phase": phases.number(step.number)} if phases.are_given else {}),
                "samples_seen": state.samples_seen,
                "loss": step.loss.item(),
                "lr": state.optimizers.lr,
                "grad_norm": step.grad_norm.item(),
                **state.objective.figures(),
                **scale,
                **speed,
                **self.data.source_figures(state.step),
                **state.accounts.figures(),
                **self.data.work.figures(),
                **self.figures(),
            }
        )
        clock.restart()

    def _look_after(self, verdict: Verdict, clock: Clock) -> None:
        """What a step asks for beside training."""
        if verdict.save_failed:
            self._wait_for_save()
        if verdict.roll_back:
            with self.watchdog.busy("rolling back"):
                self._roll_back()
        self._garbage.step(self.state.step)
        self.watchdog.beat(self.state.step)
        if self.stragglers is not None:
            for line in self.stragglers.step(clock.last_wait):
                self._say(line)

    def _tell_held_back(self) -> None:
        """The weights that a run ends with may be older than its last step.

        Raises:
            TrainingStopped: they are those that it began with.
        """
        count, steps = self.state.held_back, self.total_steps
        if not count:
            return
        if count < steps:
            self._say(
                f"the last {counted(count, 'step')} of {steps:,} had no finite loss and gradient "
                f"and changed nothing: the weights are those of step {steps - count:,}"
            )
            return
        named = (
            f"; their samples are named in {self.guard.path}" if self.guard.path.exists() else ""
        )
        lower = "optim.lr" + (" or train.loss_scale.initial" if self.state.loss_scale else "")
        raise TrainingStopped(
            f"none of the run's {counted(steps, 'step')} had a finite loss and gradient, and the "
            f"weights are those that it began with{named}; lower {lower}, look at the samples, or "
            "begin with other weights"
        )

    def _tell_data(self, clock: Clock) -> None:
        """One table at the end: what the data cost this rank."""
        lines = self.data.work.table(waited=clock.waited, passed=clock.passed)
        if lines and num_ranks() > 1:
            lines = [f"the data of rank 0, one of {num_ranks():,} ranks:", *lines]
        for line in lines:
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
        self._rolled_back_to, self.state.held_back = step, 0
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
