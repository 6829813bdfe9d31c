/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the control thread. All is called by it with dev->lock held.
 */
#ifndef FF_CONTROL_H
#define FF_CONTROL_H

#include "net_ff.h"

/* control.c */
uint64_t ff_now_ms(void);
void ff_control_send(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd);
/* DONE, unless the serial says that none is wanted; or ERROR with the reason, */
void ff_control_answer(struct ff_dev *dev, uint32_t serial, const char *why);
/* which may also say what it is about: a shortcut (number, epoch), or a region */
void ff_control_complain(struct ff_dev *dev, struct ff_shm_msg about, const char *why);

/* data.c */
int ff_data_up(struct ff_dev *dev, const struct ff_shm_msg *msg, const int *fds, int n, char *why);
void ff_data_quiet(struct ff_dev *dev);
void ff_data_down(struct ff_dev *dev);
void ff_data_take_back(struct ff_dev *dev);
bool ff_data_broken(const struct ff_dev *dev);
bool ff_data_tick(struct ff_dev *dev);

/* request.c */
void ff_request(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd);
void ff_drop_in(struct ff_dev *dev, struct ff_in *in);
void ff_drop_out(struct ff_dev *dev, struct ff_out *out);
void ff_publish(struct ff_dev *dev);

/* ethdev.c */
void ff_dev_free(struct ff_dev *dev);

#endif
