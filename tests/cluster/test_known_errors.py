"""The table of known errors: each is found in a message as it is really written, and users can look it up."""

import pytest

from dvt.cluster.diagnosis import KNOWN_ERRORS, recognise

MESSAGES = {
    "EI0002": "EI0002: The wait execution of the Notify register times out. Reason: no Notify record from rank [1]",
    "EI0004": "EI0004: The ranktable is invalid,Reason:[The ranktable config is empty]. Please check it",
    "EI0005": "EI0005: The arguments for collective communication are inconsistent between ranks:parameter[count]",
    "EI0006": "EI0006: Getting socket times out. Reason: Remote Rank did not send the data in time.",
    "EJ0001": "EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.",
    "EE1001": "EE1001: The argument is invalid.Reason: Set visible device failed, invalid device=8",
    "other code, configuration or versions": "error: rank 3 (0012ab) runs other code, another configuration or other "
    "versions than the other 3 of 4 ranks",
    "out of memory": "RuntimeError: Device(id:0) memory isn't enough and alloc failed, out of memory",
    "loss not finite": "error: the loss is no longer finite at step 12 (per exit: [nan, 6.9, 6.9])",
    "address in use": "RuntimeError: bind failed, errno: 98, Address already in use",
    "registered twice": "RuntimeError: Failed to register the compute graph node: 0. Reason: Repeated registration "
    "node: 0 to the scheduler. Please check if there's another scheduler process with port:8118 still running",
    "cluster incomplete": "RuntimeError: Failed to initialize distributed job cluster because some processes in the "
    "cluster are not successfully spawned.",
    "worker lost": "RuntimeError: Launch kernel failed, name:Default/network/AllReduce-op12",
    "interrupted": "Traceback (most recent call last):\n  File 'a.py', line 1\nKeyboardInterrupt",
}


@pytest.mark.parametrize("name", [known.name for known in KNOWN_ERRORS])
def test_each_is_found_in_a_message_of_its_kind(name: str):
    assert recognise(MESSAGES[name]).name == name


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: boom",
        "epoch 3: loss 0.31, accuracy 71.2",
        "nanoseconds",
        "RuntimeError: Launch kernel failed, name:MatMul",
    ],
)
def test_others_are_not(text: str):
    assert recognise(text) is None


def test_a_cause_goes_before_an_effect_in_the_same_text():
    assert recognise(MESSAGES["EI0002"] + "\n" + MESSAGES["out of memory"]).name == "out of memory"
