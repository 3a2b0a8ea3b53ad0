"""What we use of Optuna beyond its documented interface: in this file alone.

`tests/sweep/test_optuna_internals.py` calls each function, so that a release that changes one of them is noticed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def new_trial(study: "optuna.Study", attributes: Mapping[str, Any]) -> int:
    """Makes a running trial that has these attributes from its first moment; returns its number."""
    from optuna.trial import TrialState, create_trial

    made = create_trial(state=TrialState.RUNNING, user_attrs=dict(attributes))
    trial_id = study._storage.create_new_trial(study._study_id, template_trial=made)
    return study._storage.get_trial_number_from_id(trial_id)


def open_trial(study: "optuna.Study", number: int) -> "optuna.Trial":
    """A trial of any process, to report to or to sample in."""
    import optuna

    return optuna.Trial(study, _trial_id(study, number))


def stored_trial(study: "optuna.Study", number: int) -> "optuna.trial.FrozenTrial":
    """A trial as the storage has it at this moment."""
    return study._storage.get_trial(_trial_id(study, number))


def suggest(
    study: "optuna.Study", number: int, distributions: Mapping[str, "BaseDistribution"], fixed: Mapping[str, Any]
) -> "optuna.trial.FrozenTrial":
    """Gives a trial a value for each distribution, `fixed` ones as they are; those that it has already stay."""
    if fixed:
        study._storage.set_trial_system_attr(_trial_id(study, number), "fixed_params", dict(fixed))
    trial = open_trial(study, number)
    for name, distribution in distributions.items():
        trial._suggest(name, distribution)
    return stored_trial(study, number)


def set_attribute(study: "optuna.Study", number: int, key: str, value: Any) -> None:
    study._storage.set_trial_user_attr(_trial_id(study, number), key, value)


def _trial_id(study: "optuna.Study", number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
