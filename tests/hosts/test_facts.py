"""What must be the same everywhere."""

import pytest

import llm_jax
from llm_jax.hosts import facts
from llm_jax.hosts.process_group import Hosts, ProcessGroup
from tests.hosts.connections import connections, everywhere


def test_the_code_is_every_source_file_and_the_versions():
    found = facts.code()
    assert {"python", "jax", "jaxlib", "llm_jax/hosts/facts.py", "llm_jax/train/step.py"} <= found.keys()
    assert found["llm_jax/train/step.py"] != found["llm_jax/train/loop.py"]
    assert llm_jax.__name__ in {name.split("/")[0] for name in found}


def test_the_digest_changes_with_any_fact_and_not_with_their_order():
    digest = facts.digest({"a": "1", "b": "2"})
    assert digest == facts.digest({"b": "2", "a": "1"})
    assert len({digest, facts.digest({"a": "1", "b": "3"}), facts.digest({"a": "1"}), facts.digest({})}) == 4


def test_the_differences_say_which_host_differs_in_what():
    found = [
        {"lr": "1", "steps": "2"},
        {"lr": "1", "steps": "2"},
        {"lr": "3", "steps": "2", "new": "4"},
        {"steps": "2"},
    ]
    assert facts.differences(["a", "b", "c", "d"], found).splitlines() == [
        "  host 2 (c): lr is 3, not 1; new is 4, not absent",
        "  host 3 (d): lr is absent, not 1",
    ]
    many = [{str(key): "0" for key in range(20)}, {str(key): "1" for key in range(20)}]
    assert "and 12 more" in facts.differences(["a", "b"], many)


def test_hosts_that_agree_go_on_and_all_others_are_told():
    with connections(3) as (opened, _):
        groups = [ProcessGroup(connection, ["a", "b", "c"]) for connection in opened]
        everywhere(groups, lambda group: group.agree("experiment", {"lr": "1"}))

        def disagree(group: ProcessGroup) -> str:
            with pytest.raises(ValueError) as error:
                group.agree("experiment", {"lr": str(group.names.index("b") if group is groups[1] else 0)})
            return str(error.value)

        said = everywhere(groups, disagree)
    assert len(set(said)) == 1
    assert said[0] == "the hosts do not agree on the experiment; compared with host 0:\n  host 1 (b): lr is 1, not 0"


def test_the_leader_goes_first():
    with connections(3) as (opened, _):
        groups, order = [ProcessGroup(connection, ["a", "b", "c"]) for connection in opened], []

        def act(group: ProcessGroup) -> None:
            with group.leader_first("x"):
                order.append(group.leads)

        everywhere(list(reversed(groups)), act)
    assert order == [True, False, False]


def test_one_process_agrees_with_itself_and_leads():
    alone = Hosts()
    alone.agree("anything", {"a": "b"})
    assert alone.leads and alone.count == len(alone.names) == 1 and alone.gather("x", 3) == [3]
    assert not alone.must_stop(1)
    alone.ask_to_stop()
    assert alone.must_stop(2)
