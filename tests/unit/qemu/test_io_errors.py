"""I/O errors of disks that QEMU reports, and the reason why it stopped a guest."""

from testbed.qemu.io_errors import IoErrors, failed_requests


def test_errors_are_counted_by_disk_operation_and_action() -> None:
    errors = IoErrors()
    for _ in range(3):
        errors.on_event("BLOCK_IO_ERROR", {"node-name": "limited-data", "operation": "read", "action": "report"})
    errors.on_event("BLOCK_IO_ERROR", {"node-name": "limited-data", "operation": "write", "action": "ignore"})
    errors.on_event("BLOCK_IO_ERROR", {"node-name": "limited-other", "operation": "write", "action": "odd"})
    assert errors.describe("data", {}) == ["3 read errors reported", "1 write error ignored"]
    assert (
        errors.describe("other", {}) == ["1 write error odd"]
        and errors.describe("none", {}) == []
        and errors.stopped == ""
    )
    # What QEMU has not told of, and what its counters, which begin again with each plug, no longer know.
    assert errors.describe("data", {"read": 5, "write": 1}) == [
        "5 read errors reported",
        "1 write error ignored",
        "1 write error reported",
    ]
    assert errors.describe("data", {"read": 0, "write": 0}) == ["3 read errors reported", "1 write error ignored"]


def test_a_stopped_guest_has_a_reason_until_it_resumes() -> None:
    errors = IoErrors()
    heard: list[str] = []
    errors.on_stop = lambda: heard.append(errors.stopped)
    errors.on_event("RESUME", {})
    error = {"node-name": "limited-data", "operation": "write", "action": "stop", "reason": "No space left on device"}
    errors.on_event("BLOCK_IO_ERROR", error)
    errors.on_event("BLOCK_IO_ERROR", error)
    errors.on_event("STOP", {})
    errors.on_event("RESUME", {})
    assert heard == ["stopped at a write error of disk data (No space left on device)", ""]
    assert errors.describe("data", {}) == ["2 write errors stopped the guest"]
    errors.on_event("STOP", {})
    errors.on_event("RESUME", {})
    assert heard[2:] == ["stopped, by a debugger or by `stop` of QMP", ""]


def test_failed_requests_are_counted_for_the_emulated_disk_itself() -> None:
    stats = {"failed_rd_operations": 2, "failed_wr_operations": 3, "failed_flush_operations": 4}
    none = dict.fromkeys(stats, 0)
    told = [
        {"device": "root", "stats": none},
        {"qdev": "/machine/peripheral/disk-data2/virtio-backend", "stats": none},
        {"qdev": "/machine/peripheral/disk-data/virtio-backend", "stats": stats},
        {"qdev": "disk-fast", "stats": none},
    ]
    assert failed_requests(told, "data") == {"read": 2, "write": 7}
    assert failed_requests(told, "fast") == {"read": 0, "write": 0} and failed_requests(told, "gone") == {}
