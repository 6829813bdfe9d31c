/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupts for drivers, without ever waiting for one of them. */
#ifndef FF_CALL_H
#define FF_CALL_H

/* Before ff_call is called on this lcore. 0 or a negative errno: EAGAIN, fs.aio-max-nr is used up.
 */
int ff_call_init(unsigned int lcore);
void ff_call_fini(unsigned int lcore);

/* Adds one to an eventfd, or leaves it at its maximum. Never blocks. On an lcore only. */
void ff_call(int fd);

#endif
