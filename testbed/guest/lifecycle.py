"""The life cycle of a guest as a table of states and events, and the deadline of each wait. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each wait on a guest may take, in seconds."""

    boot_s: float
    restore_s: float
    ssh_s: float
    command_s: float
    stack_s: float  # all setup steps, which make filesystems and fill files
    monitor_s: float


# A cold boot took 8 to 9 s on the host where these limits were chosen (2 cores, TCG); a slower host gets more time in
# proportion.
_REFERENCE_BOOT_S = 8.5


def deadlines(measured_boot_s: float | None) -> Deadlines:
    """Return the limits for a host on which a cold boot took `measured_boot_s`; None if that is not known yet."""
    slowness = 4.0 if measured_boot_s is None else max(1.0, measured_boot_s / _REFERENCE_BOOT_S)
    return Deadlines(
        boot_s=90 * slowness,
        restore_s=30 * slowness,
        ssh_s=20 * slowness,
        command_s=60 * slowness,
        stack_s=240 * slowness,
        monitor_s=20 * slowness,
    )
