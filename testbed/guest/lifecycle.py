"""The life of a guest as a table: what can happen in which state, and how long each wait may take."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """Where a guest is in its life; the value names the stage in messages."""

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
    """What happens to a guest."""

    SPAWNED = "QEMU was started"
    MONITOR_CONNECTED = "QMP answered"
    AGENT_WAITING = "the guest's agent waits for an identity"
    IDENTIFIED = "the agent took the identity"
    DEVICES_VERIFIED = "the devices are those of the topology"
    SSH_CONNECTED = "SSH answered"
    ENDED = "QEMU ended, the guest panicked, or a deadline passed"
    TORN_DOWN = "everything of it was removed"


class Loss(enum.Enum):
    """What ended a guest, as far as it is known."""

    PANIC = "panic"
    OOPS = "oops"
    POWER_OFF = "power-off"
    REBOOT = "reboot"
    QEMU = "qemu"
    HOST = "host"  # this machine has no room for it, or no program that runs it
    KILLED = "killed"  # somebody ended QEMU, or the kernel for want of memory
    MONITOR = "monitor"  # QEMU runs, and cannot be spoken with


# What QEMU's SHUTDOWN event gives as reason (qapi/run-state.json: ShutdownCause).
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
    """The state after an event.

    :raise ValueError: the event cannot happen in this state; a mistake in the testbed.
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
    stack_s: float  # all of its steps, which make file systems and fill files
    monitor_s: float


# A cold boot took 8 to 9 s where these limits were chosen (2 cores, TCG); a slower host gets proportionally more.
_REFERENCE_BOOT_S = 8.5


def deadlines(measured_boot_s: float | None) -> Deadlines:
    """Limits for a host where a cold boot took `measured_boot_s`; None where nothing was measured yet."""
    slowness = 4.0 if measured_boot_s is None else max(1.0, measured_boot_s / _REFERENCE_BOOT_S)
    return Deadlines(
        boot_s=90 * slowness,
        restore_s=30 * slowness,
        ssh_s=20 * slowness,
        command_s=60 * slowness,
        stack_s=240 * slowness,
        monitor_s=20 * slowness,
    )
