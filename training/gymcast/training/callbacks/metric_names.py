"""The metrics there are beside the fields of a reading: their names, units and meanings."""

from __future__ import annotations

# Our names for what the algorithms log; entropy is logged as a loss, that is with its sign turned.
LOGGED = {
    "policy_loss": ("train/policy_gradient_loss", "train/policy_loss"),
    "value_loss": ("train/value_loss",),
    "entropy": ("train/entropy_loss",),
    "explained_variance": ("train/explained_variance",),
    "approx_kl": ("train/approx_kl",),
    "clip_fraction": ("train/clip_fraction",),
    "policy_objective": ("train/policy_objective",),
    "kl_divergence": ("train/kl_divergence_loss",),
    "line_search_success": ("train/is_line_search_success",),
    "actor_loss": ("train/actor_loss",),
    "critic_loss": ("train/critic_loss",),
    "ent_coef": ("train/ent_coef",),
    "ent_coef_loss": ("train/ent_coef_loss",),
    "action_std": ("train/std",),
    "delta_std": ("train/delta_std",),
    "step_size": ("train/step_size",),
    "return_std": ("train/return_std",),
    "loss": ("train/loss",),
}
# The same as below, of some algorithms only.
METRICS_OF_SOME = {
    "policy_objective": ("", "surrogate objective of the actor after the last update (trpo)"),
    "kl_divergence": ("nats", "divergence between the policies before and after the last update; 0: dropped (trpo)"),
    "line_search_success": ("share", "whether the line search of the last update found a step, 1 or 0 (trpo)"),
    "actor_loss": (
        "",
        "mean loss of the actor in the last updates: minus the critics' value of its actions (sac, td3)",
    ),
    "critic_loss": ("", "mean squared error of the critics in the last updates (sac, td3)"),
    "ent_coef": ("", "weight of the policy's entropy against the reward (sac)"),
    "ent_coef_loss": ("", "loss of that weight while it is learned; 0 where the entropy is on target (sac)"),
    "action_std": ("", "mean spread of continuous actions (on-policy algorithms)"),
    "delta_std": ("", "size of the change tried on each weight (ars)"),
    "step_size": ("", "learning rate over the number of directions and the spread of their returns (ars)"),
    "return_std": ("", "standard deviation of the returns of the policies tried (ars)"),
    "replay_size": ("decisions", "decisions in the replay buffer"),
    "warmup_left": ("decisions", "decisions until the first update of an off-policy algorithm"),
}
# Name -> (unit, meaning) of what gymcast's own trainer sends in a reading's ``extra``.
EXTRA_METRICS = {
    "timesteps": ("decisions", "decisions taken so far, all lanes together"),
    "epoch": ("updates", "rounds of collecting and learning so far; of off-policy algorithms gradient steps"),
    "samples_per_second": ("decisions/s", "decisions per second of training over about the last ten seconds"),
    "game_seconds_per_second": ("s/s", "game seconds simulated per second of training, all lanes together"),
    "episodes_per_minute": ("1/min", "episodes finished per minute of training"),
    "policy_loss": ("", "mean policy gradient loss of the last update"),
    "value_loss": ("", "mean squared error of the critic in the last update"),
    "entropy": ("nats", "mean entropy of the policy in the last update; falls as the bot makes up its mind"),
    "explained_variance": ("", "share of the returns' variance the critic explains; 1 is perfect, 0 a constant"),
    "approx_kl": ("nats", "approximate divergence between the policies before and after the last update"),
    "clip_fraction": ("share", "share of samples whose probability ratio was clipped in the last update"),
    "worst_reward": ("", "lowest return of any episode so far"),
    "wins": ("episodes", "training episodes won so far"),
    "losses": ("episodes", "training episodes lost so far"),
    "draws": ("episodes", "training episodes drawn so far"),
    "worker_restarts": ("restarts", "worker processes started again so far, when there are any"),
    "episodes_failed": ("episodes", "episodes cut short because their worker failed; they count in no other metric"),
    "pace": ("s/s", "game seconds of each lane per second over about the last ten seconds, when a speed is asked for"),
    "pace_lag": ("s", "time by which the game is behind the speed asked for, since this process began"),
    **METRICS_OF_SOME,
}
