"""The life cycle of a guest as a table of states and events. Pure."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """The states of a guest; the value names the stage in messages."""

    PLANNED = "planned"
    LAUNCHED = "waiting for QEMU's monitor"
    MONITORED = "booting or restoring"
    AWAKE = "taking its identity"
    IDENTIFIED = "checking its devices"
    VERIFIED = "waiting for SSH"
    READY = "ready"
    LOST = "lost"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What happens to a guest; the value is written into the event log."""

    SPAWNED = "QEMU was started"
    MONITOR_CONNECTED = "QMP answered"
    AGENT_WAITING = "the guest's agent waits for an identity"
    IDENTIFIED = "the agent took the identity"
    DEVICES_VERIFIED = "the devices are those of the topology"
    SSH_CONNECTED = "SSH answered"
    ENDED = "QEMU ended, the guest panicked, or a deadline passed"
    TORN_DOWN = "everything of it was removed"


class Loss(enum.Enum):
    """What ended a guest."""

    PANIC = "panic"
    OOPS = "oops"
    POWER_OFF = "power-off"
    REBOOT = "reboot"
    QEMU = "qemu"
    HOST = "host"  # this machine lacks disk space or a program
    KILLED = "killed"  # QEMU was killed, by a user or by the OOM killer
    MONITOR = "monitor"  # QEMU runs, but its monitor is closed


# By the reason in QEMU's SHUTDOWN event (qapi/run-state.json: ShutdownCause).
SHUTDOWNS = {"guest-shutdown": Loss.POWER_OFF, "guest-reset": Loss.REBOOT, "guest-panic": Loss.PANIC}

_ALIVE = (State.LAUNCHED, State.MONITORED, State.AWAKE, State.IDENTIFIED, State.VERIFIED, State.READY)

NEXT: dict[tuple[State, Event], State] = {
    (State.PLANNED, Event.SPAWNED): State.LAUNCHED,
    (State.LAUNCHED, Event.MONITOR_CONNECTED): State.MONITORED,
    (State.MONITORED, Event.AGENT_WAITING): State.AWAKE,
    (State.AWAKE, Event.IDENTIFIED): State.IDENTIFIED,
    (State.IDENTIFIED, Event.DEVICES_VERIFIED): State.VERIFIED,
    (State.VERIFIED, Event.SSH_CONNECTED): State.READY,
    **{(state, Event.ENDED): State.LOST for state in _ALIVE},
    **{(state, Event.TORN_DOWN): State.STOPPED for state in (State.PLANNED, State.LOST, *_ALIVE)},
}


def advance(state: State, event: Event) -> State:
    """Return the state after an event.

    :raise ValueError: the event cannot happen in this state; a bug in the testbed.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise ValueError(f"a guest that is {state.name} cannot meet {event.name}") from None
