/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's log: kept in a ring for the slow path, which decides what people see. */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include <rte_log.h>

#include "switch.h"

#define LOG_SIZE 65536u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char text[LOG_SIZE];
static size_t text_len;
static bool line_starts = true; /* the next byte of text is a line's first */
static char
    complaint[256];       /* the first error since ff_error_clear: later ones only follow from it */
static char partial[256]; /* the line that is being written */
static size_t partial_len;

static ssize_t log_write(void *cookie, const char *buf, size_t size) {
    (void)cookie;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < size; i++) {
        if (line_starts && text_len < LOG_SIZE)
            text[text_len++] = (char)('0' + rte_log_cur_msg_loglevel());
        line_starts = buf[i] == '\n';
        if (text_len < LOG_SIZE)
            text[text_len++] = buf[i];
        if (buf[i] != '\n') {
            if (partial_len + 1 < sizeof(partial))
                partial[partial_len++] = buf[i];
            continue;
        }
        partial[partial_len] = '\0';
        if (partial_len > 0 && complaint[0] == '\0' &&
            rte_log_cur_msg_loglevel() <= (int)RTE_LOG_ERR)
            memcpy(complaint, partial, partial_len + 1);
        partial_len = 0;
    }
    pthread_mutex_unlock(&lock);
    return (ssize_t)size;
}

int ff_log_open(void) {
    cookie_io_functions_t io = {.write = log_write};
    FILE *f = fopencookie(NULL, "w", io);

    if (f == NULL)
        return -errno;
    setvbuf(f, NULL, _IOLBF, BUFSIZ);
    return rte_openlog_stream(f);
}

void ff_log_level(int level) {
    rte_log_set_global_level((uint32_t)level);
}

int ff_log_drain(char *buf, size_t len) {
    size_t n;

    pthread_mutex_lock(&lock);
    n = RTE_MIN(text_len, len - 1);
    memcpy(buf, text, n);
    buf[n] = '\0';
    memmove(text, text + n, text_len - n);
    text_len -= n;
    pthread_mutex_unlock(&lock);
    return (int)n;
}

void ff_error_clear(void) {
    pthread_mutex_lock(&lock);
    complaint[0] = '\0';
    pthread_mutex_unlock(&lock);
}

void ff_error(char *err, const char *fmt, ...) {
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(err, FF_ERR_LEN, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&lock);
    if (complaint[0] != '\0' && n >= 0 && n < FF_ERR_LEN)
        snprintf(err + n, FF_ERR_LEN - (size_t)n, " (%s)", complaint);
    pthread_mutex_unlock(&lock);
}
