"""What QEMU says of errors of its disks, and of a guest that stands still for one."""

from testbed.disk_errors import DiskErrors


def test_errors_are_counted_by_disk_operation_and_what_became_of_them() -> None:
    errors = DiskErrors()
    for _ in range(3):
        errors.hear("BLOCK_IO_ERROR", {"node-name": "limited-data", "operation": "read", "action": "report"})
    errors.hear("BLOCK_IO_ERROR", {"node-name": "limited-data", "operation": "write", "action": "ignore"})
    errors.hear("BLOCK_IO_ERROR", {"node-name": "limited-other", "operation": "write", "action": "odd"})
    assert errors.said("data") == ["3 read errors reported", "1 write error ignored"]
    assert errors.said("other") == ["1 write error odd"] and errors.said("none") == [] and errors.stopped == ""


def test_a_guest_that_stands_still_says_why_until_it_goes_on() -> None:
    errors = DiskErrors()
    heard: list[str] = []
    errors.on_stop = lambda: heard.append(errors.stopped)
    errors.hear("RESUME", {})
    error = {"node-name": "limited-data", "operation": "write", "action": "stop", "reason": "No space left on device"}
    errors.hear("BLOCK_IO_ERROR", error)
    errors.hear("BLOCK_IO_ERROR", error)
    errors.hear("STOP", {})
    errors.hear("RESUME", {})
    assert heard == ["stopped at a write error of disk data (No space left on device)", ""]
    assert errors.said("data") == ["2 write errors stopped the guest"]
