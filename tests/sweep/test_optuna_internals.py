"""Each function is called, so that a release of Optuna that changes what they stand on is noticed here."""

from typing import Any

import pytest

from cnnlab.sweep import optuna_internals as internals

optuna = pytest.importorskip("optuna")
SPACE = {"x": optuna.distributions.FloatDistribution(0, 1), "y": optuna.distributions.CategoricalDistribution(["a"])}


@pytest.fixture
def study() -> Any:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(0))


def test_a_trial_has_its_owner_from_its_first_moment(study: Any) -> None:
    assert [internals.new_trial(study, {"owner": name}) for name in "ab"] == [0, 1]
    assert [trial.user_attrs for trial in study.get_trials()] == [{"owner": "a"}, {"owner": "b"}]
    assert {trial.state.name for trial in study.get_trials()} == {"RUNNING"}


def test_a_trial_is_given_what_it_lacks(study: Any) -> None:
    number = internals.new_trial(study, {})
    assert internals.suggest(study, number, SPACE, {"x": 0.5}).params == {"x": 0.5, "y": "a"}
    assert internals.suggest(study, number, SPACE, {"x": 0.7}).params == {"x": 0.5, "y": "a"}  # what it has stays


def test_a_trial_is_told_by_its_number(study: Any) -> None:
    number = internals.new_trial(study, {})
    internals.set_attribute(study, number, "outcome", {"seconds": 1.5})
    internals.open_trial(study, number).report(0.25, 1)
    assert internals.stored_trial(study, number).intermediate_values == {1: 0.25}
    study.tell(number, 0.5)
    assert study.trials[number].user_attrs == {"outcome": {"seconds": 1.5}}
