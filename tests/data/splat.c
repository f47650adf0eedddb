// Provokes what the console parser must find: insmod splat.ko what=warn, refcount, list, atomic, hung, rcu or null.
#include <linux/module.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/kthread.h>
#include <linux/delay.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
static char *what = "warn";
module_param(what, charp, 0);
static struct list_head a, b;
static DEFINE_SPINLOCK(l);
static int __init splat(void)
{
	if (!strcmp(what, "warn")) WARN_ON(1);
	if (!strcmp(what, "refcount")) { refcount_t r = REFCOUNT_INIT(0); refcount_inc(&r); }
	if (!strcmp(what, "list")) { INIT_LIST_HEAD(&a); list_add(&b, &a); list_del(&b); list_del(&b); }
	if (!strcmp(what, "rcu")) { rcu_read_lock(); mdelay(30000); rcu_read_unlock(); }
	if (!strcmp(what, "atomic")) { spin_lock(&l); msleep(10); spin_unlock(&l); }
	if (!strcmp(what, "hung")) { set_current_state(TASK_UNINTERRUPTIBLE); schedule_timeout(40 * HZ); }
	if (!strcmp(what, "null")) { *(volatile int *)8 = 1; }
	return -EAGAIN;
}
module_init(splat);
MODULE_LICENSE("GPL");
