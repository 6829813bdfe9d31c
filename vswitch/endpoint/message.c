/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages on ff.sock: one struct ff_shm_msg each, with file descriptors.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "net_ff.h"

/* A connection that does not block, or -errno: -EAGAIN when the switch has no time for it yet. */
int ff_msg_connect(const char *path) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (sock < 0)
        return -errno;
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int rc = -errno;

        close(sock);
        return rc;
    }
    return sock;
}

/* Sends a message, with a file descriptor unless fd is -1. A full socket is an error: the switch
 * has stopped to listen. */
int ff_msg_send(int sock, const struct ff_shm_msg *msg, int fd) {
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)msg, .iov_len = sizeof(*msg)};
    struct msghdr head = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        struct cmsghdr *c;

        head.msg_control = control.buf;
        head.msg_controllen = sizeof(control.buf);
        c = CMSG_FIRSTHDR(&head);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    return sendmsg(sock, &head, MSG_NOSIGNAL) == (ssize_t)sizeof(*msg) ? 0 : -errno;
}

/*
 * Receives a message and up to FF_MSG_FDS descriptors, which are the caller's to close.
 * Returns 1, 0 when there is none yet, -ECONNRESET at the end, -EPROTO for what is no message.
 */
int ff_msg_receive(int sock, struct ff_shm_msg *msg, int *fds, int *n_fds) {
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(FF_MSG_FDS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = msg, .iov_len = sizeof(*msg)};
    struct msghdr head = {.msg_iov = &iov,
                          .msg_iovlen = 1,
                          .msg_control = control.buf,
                          .msg_controllen = sizeof(control.buf)};
    ssize_t got = recvmsg(sock, &head, MSG_CMSG_CLOEXEC);

    *n_fds = 0;
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&head); c != NULL; c = CMSG_NXTHDR(&head, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            *n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(c), (size_t)*n_fds * sizeof(int));
        }
    }
    if (got == 0)
        return -ECONNRESET;
    if (got != (ssize_t)sizeof(*msg) || (head.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        return -EPROTO;
    msg->text[FF_SHM_TEXT - 1] = '\0';
    return 1;
}
