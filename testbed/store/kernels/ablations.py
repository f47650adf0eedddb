"""Ablations: small edits of a source with the series, each of which removes one thing from it.

An edit is applied only if its text is there exactly once; where the source has changed at this place, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.errors import BuildError

_LOOP = "drivers/block/loop.c"
_OR_OF_MM = "\tif (!memcg || !css_tryget_online(&memcg->css))\n\t\tmemcg = get_mem_cgroup_from_mm(mm);"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replaces `find` by `put` in `file`."""

    file: str
    find: str
    put: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Undoes work of some `patches` of the series. `what`: is lost; `ways`: the edits, for each form of the source."""

    name: str
    patches: tuple[int, ...]
    what: str
    ways: tuple[tuple[Edit, ...], ...]


def _in_loop(*pairs: tuple[str, str]) -> tuple[Edit, ...]:
    return tuple(Edit(file=_LOOP, find=find, put=put) for find, put in pairs)


# The forms are those of Debian's 6.1 and 6.12.
_ALL = (
    Ablation(
        name="root-worker",
        patches=(1,),
        what="every request is the root worker's, though it is charged",
        ways=(
            _in_loop(
                ("if (queue_on_root_worker(cmd->blkcg_css))", "if (queue_on_root_worker(cmd->blkcg_css) || true)")
            ),
        ),
    ),
    Ablation(
        name="no-worker-memory",
        patches=(1,),
        what="there is never memory for a worker",
        ways=(
            _in_loop(
                ("worker = kzalloc(sizeof(struct loop_worker), GFP_NOWAIT | __GFP_NOWARN);", "worker = NULL;"),
            ),
            _in_loop(("worker = kzalloc(sizeof(struct loop_worker), GFP_NOWAIT);", "worker = NULL;")),
        ),
    ),
    Ablation(
        name="idle-for-ever",
        patches=(1,),
        what="idle workers are never freed",
        ways=(_in_loop(("timer_reduce(&lo->timer, jiffies + LOOP_IDLE_WORKER_TIMEOUT);", "(void)lo;")),),
    ),
    Ablation(
        name="idle-at-once",
        patches=(1,),
        what="idle workers are freed at once",
        ways=(_in_loop(("#define LOOP_IDLE_WORKER_TIMEOUT (60 * HZ)", "#define LOOP_IDLE_WORKER_TIMEOUT 0")),),
    ),
    Ablation(
        name="destroyed-under-lock",
        patches=(1,),
        what="the workqueue is destroyed under a spinlock at each detach, as in v5",
        ways=(
            _in_loop(
                (
                    "\tlo->lo_backing_file = NULL;\n\tspin_unlock_irq(&lo->lo_lock);\n",
                    "\tlo->lo_backing_file = NULL;\n\tdestroy_workqueue(lo->workqueue);\n\tlo->workqueue = NULL;\n"
                    "\tspin_unlock_irq(&lo->lo_lock);\n",
                )
            ),
        ),
    ),
    Ablation(
        name="max-active-by-number",
        patches=(1,),
        what="a loop has as many workers at once as its number says, as in v5",
        ways=(
            _in_loop(
                (
                    "0, lo->lo_number);\n\t\tif (!lo->workqueue)",
                    "lo->lo_number, lo->lo_number);\n\t\tif (!lo->workqueue)",
                )
            ),
        ),
    ),
    Ablation(
        name="idle-twice",
        patches=(1,),
        what="a worker that gets work again stays in the list of the idle ones, and is put there once more",
        ways=(
            _in_loop(
                ("\t\tif (!list_empty(&worker->idle_list))\n\t\t\tlist_del_init(&worker->idle_list);\n", ""),
            ),
        ),
    ),
    Ablation(
        name="freed-in-tree",
        patches=(1,),
        what="an idle worker is freed and can still be found",
        ways=(_in_loop(("\t\trb_erase(&worker->rb_node, &lo->worker_tree);\n", "")),),
    ),
    Ablation(
        name="worker-leaked",
        patches=(1,),
        what="the memory of an idle worker is not given back",
        ways=(_in_loop(("\t\tkfree(worker);\n", "")),),
    ),
    Ablation(
        name="timer-outlives",
        patches=(1,),
        what="the timer of the idle workers outlives the loop device",
        ways=(
            _in_loop(("\tdel_timer_sync(&lo->timer);\n\tmutex_destroy", "\tmutex_destroy")),
            _in_loop(("\ttimer_shutdown_sync(&lo->timer);\n\tmutex_destroy", "\tmutex_destroy")),
        ),
    ),
    Ablation(
        name="nesting-lost",
        patches=(2,),
        what="whoever charges inside a charged section leaves nobody charged afterwards",
        ways=(
            (
                Edit(
                    file="fs/buffer.c",
                    find="out:\n\tset_active_memcg(old_memcg);\n\treturn head;",
                    put="out:\n\t(void)old_memcg;\n\tset_active_memcg(NULL);\n\treturn head;",
                ),
                Edit(
                    file="fs/notify/fanotify/fanotify.c",
                    find="out:\n\tset_active_memcg(old_memcg);",
                    put="out:\n\t(void)old_memcg;\n\tset_active_memcg(NULL);",
                ),
                Edit(
                    file="fs/notify/inotify/inotify_fsnotify.c",
                    find="__GFP_RETRY_MAYFAIL);\n\tset_active_memcg(old_memcg);",
                    put="__GFP_RETRY_MAYFAIL);\n\t(void)old_memcg;\n\tset_active_memcg(NULL);",
                ),
            ),
        ),
    ),
    Ablation(
        name="active-memcg-ignored",
        patches=(3,),
        what="the active memory cgroup is ignored where there is no mm",
        ways=(
            (
                Edit(
                    file="mm/memcontrol.c",
                    find="memcg = active_memcg();\n\t\tif (unlikely(memcg)) {\n"
                    "\t\t\t/* remote memcg must hold a ref */",
                    put="memcg = NULL;\n\t\tif (unlikely(memcg)) {\n\t\t\t/* remote memcg must hold a ref */",
                ),
            ),
        ),
    ),
    Ablation(
        name="shmem-uncharged",
        patches=(3,),
        what="pages that a loop adds to tmpfs are charged to nobody's cgroup",
        ways=(
            (
                Edit(
                    file="mm/shmem.c",
                    find="\tcharge_mm = vma ? vma->vm_mm : NULL;\n",
                    put="\tcharge_mm = vma ? vma->vm_mm : current->mm ?: &init_mm;\n",
                ),
            ),
            (
                Edit(
                    file="mm/shmem.c",
                    find="\tfault_mm = vma ? vma->vm_mm : NULL;\n",
                    put="\tfault_mm = vma ? vma->vm_mm : current->mm ?: &init_mm;\n",
                ),
            ),
        ),
    ),
    Ablation(
        name="swap-in-uncharged",
        patches=(3,),
        what="pages that a loop swaps in are charged to nobody's cgroup",
        ways=(
            (
                Edit(
                    file="mm/memcontrol.c",
                    find=f"\tmemcg = mem_cgroup_from_id(id);\n{_OR_OF_MM}",
                    put=f"\tmemcg = active_memcg() ? root_mem_cgroup : mem_cgroup_from_id(id);\n{_OR_OF_MM}",
                ),
            ),
        ),
    ),
    Ablation(
        name="no-memory-charge",
        patches=(4,),
        what="no memory is charged to the issuer",
        ways=(
            _in_loop(
                (
                    "\tloop_queue_work(lo, cmd);\n\n\treturn BLK_STS_OK;",
                    "\tif (cmd->memcg_css)\n\t\tcss_put(cmd->memcg_css);\n\tcmd->memcg_css = NULL;\n"
                    "\tloop_queue_work(lo, cmd);\n\n\treturn BLK_STS_OK;",
                )
            ),
        ),
    ),
    Ablation(
        name="io-charged-twice",
        patches=(4,),
        what="nothing; what a loop's worker sends to the disk for a cgroup is charged to it twice",
        ways=(
            (
                Edit(
                    file="block/blk-cgroup.c",
                    find="\t\tbis->cur.bytes[rwd] += bio->bi_iter.bi_size;\n",
                    put="\t\tbis->cur.bytes[rwd] += bio->bi_iter.bi_size * (kthread_blkcg() ? 2 : 1);\n",
                ),
            ),
        ),
    ),
    Ablation(
        name="no-io-charge",
        patches=(4,),
        what="disk I/O is charged to the issuer only where it is direct, as before the series",
        ways=(
            _in_loop(
                (
                    "\tif (cmd_blkcg_css)\n\t\tkthread_associate_blkcg(cmd_blkcg_css);\n",
                    "\tif (cmd_blkcg_css && cmd->use_aio)\n\t\tkthread_associate_blkcg(cmd_blkcg_css);\n",
                ),
            ),
        ),
    ),
)
ABLATIONS: dict[str, Ablation] = {ablation.name: ablation for ablation in _ALL}


def apply_ablation(ablation: Ablation, read: Callable[[str], str | None]) -> dict[str, str]:
    """Return the files that an ablation changes, with their new text.

    `read` returns the text of a file of the source, None if there is no such file.

    :raise BuildError: the edits fit none of the known forms of the source.
    """
    refusals = []
    for way in ablation.ways:
        changed: dict[str, str] = {}
        for edit in way:
            text = changed.get(edit.file, read(edit.file))
            times = text.count(edit.find) if text is not None else 0
            if text is None or times != 1:
                first = edit.find.strip().splitlines()[0]
                there = "there is no such file" if text is None else f"found {times} times"
                refusals.append(f"{edit.file}: expected once what begins with `{first}`, {there}")
                break
            changed[edit.file] = text.replace(edit.find, edit.put)
        else:
            return changed
    raise BuildError(f"ablation {ablation.name}: its place has moved in this source:\n    " + "\n    ".join(refusals))
