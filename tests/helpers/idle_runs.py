"""Runs of the training loop with a trivial step, which may be killed or stopped at any step."""

import signal

import jax
import jax.numpy as jnp

from bljust_jax.bilevel import step
from bljust_jax.parallel import preemption
from bljust_jax.train import compile_pool, loop
from bljust_jax.train.compiled_steps import CompiledSteps
from configs import quickstart
from tests.helpers.systems import SMALL


class Killed(Exception):
    """The process ends here."""


def idle_config(changes=()):
    config = quickstart.get_config("lstm,smoke")
    config.model.update(SMALL["cnn_rnn"])  # the fewest arrays to save
    config.mesh.data = 1
    config.data.update(test="", join=(1, 1), buckets=(0.95, 4.0), batch_seconds=4.0)
    config.data.unlabelled_batch_seconds = 4.0
    config.phases.update(explore=8, joint=8, finetune=8)
    config.penalty.slope, config.lr.joint.moments = 0.1, "reset"
    config.update(eval_every=8, save_every=3, log_every=2, compile_cache="")
    config.update_from_flattened_dict(dict(changes))
    return config


def idle_runner(monkeypatch):
    """run(workdir, changes={field: value}): a run of steps that count what they read; of it
    run(workdir, kill=n) dies before step n, run(workdir, stop=n) receives a signal there, by
    default SIGTERM."""

    def make_train_step(recipe, phases, optimizer, groups, seed, accumulate):
        def train_step(state, batch):
            heard = sum(jnp.sum(arrays["audio_lengths"]) for arrays in batch.values())
            loss = (heard.astype(jnp.float32), 7.0)
            age = jnp.max(jax.tree.leaves(state.opt_state)[0]).astype(jnp.float32)
            means = {"train/ctc/loss": loss, "age": (age, 1.0)}
            means["train/skipped"] = (state.step % 2, 1.0)
            older = jax.tree.map(lambda x: x + 1, state.opt_state)
            return state._replace(step=state.step + 1, opt_state=older), means

        return train_step

    monkeypatch.setattr(step, "make_train_step", make_train_step)
    monkeypatch.setattr(loop, "head_has_trained", lambda *_: True)
    monkeypatch.setattr(loop, "write_example", lambda *_: None)
    monkeypatch.setattr(loop.reporting, "write", lambda *_: None)
    take_step = CompiledSteps.run

    def run(workdir, kill=None, stop=None, by=signal.SIGTERM, changes=(), **flags):
        config = idle_config(changes)

        def counted(self, now, phase, state, batch):
            if now == kill:
                raise Killed
            return take_step(self, now, phase, state, batch)

        class Signalled(preemption.StopSignals):
            def requested(self, step):
                if step == stop:
                    signal.raise_signal(by)
                return super().requested(step)

        with monkeypatch.context() as patch:
            patch.setattr(preemption, "StopSignals", Signalled)
            patch.setattr(CompiledSteps, "run", counted)
            try:
                return loop.run(config, workdir, loop.RunOptions(**flags))
            finally:  # of a run that ended early: the next test counts programs
                for thread in list(compile_pool._threads):
                    thread.join()

    return run
