/* SPDX-License-Identifier: Apache-2.0 */
/* Start and stop: EAL, memory pools, workers. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_version.h>

#include "switch.h"

#define POOL_CACHE 256u

struct ff_switch ff;

const char *ff_dpdk_version(void) {
    return rte_version();
}

uint64_t ff_tsc_hz(void) {
    return ff.tsc_hz;
}

int ff_n_workers(void) {
    return (int)ff.n_workers;
}

int ff_event_fd(void) {
    return ff.event_fd;
}

int ff_upcall_fd(void) {
    return ff.upcall_fd;
}

int ff_tap_fd(void) {
    return ff.tap_fd;
}

const struct ff_port_stats *ff_port_stats(unsigned int worker) {
    return worker < ff.n_workers ? ff.workers[worker]->port_stats : NULL;
}

const struct ff_worker_stats *ff_worker_stats(unsigned int worker) {
    return worker < ff.n_workers ? &ff.workers[worker]->stats : NULL;
}

static int eal_start(const struct ff_conf *conf, char *err) {
    char **argv = calloc((size_t)conf->eal_argc + 1, sizeof(*argv));
    int rc;

    if (argv == NULL)
        return -ENOMEM;
    for (int i = 0; i < conf->eal_argc; i++)
        argv[i] = (char *)(uintptr_t)conf->eal_argv[i];
    rc = rte_eal_init(conf->eal_argc, argv); /* may reorder argv, keeps the strings */
    free(argv);
    if (rc < 0) {
        ff_error(err, "DPDK's environment does not start");
        return rte_errno ? -rte_errno : -EIO;
    }
    return 0;
}

static int worker_new(unsigned int lcore) {
    rte_cpuset_t cpus = rte_lcore_cpuset(lcore);
    struct ff_worker *w = aligned_alloc(64, RTE_ALIGN(sizeof(*w), 64));
    int rc;

    if (w == NULL)
        return -ENOMEM;
    memset(w, 0, sizeof(*w));
    w->index = ff.n_workers;
    w->lcore = lcore;
    w->stats.cpu = -1;
    for (int c = 0; CPU_COUNT(&cpus) == 1 && c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &cpus))
            w->stats.cpu = c;
    w->port_stats = calloc(FF_MAX_PORTS, sizeof(*w->port_stats));
    atomic_store(&w->poll, calloc(1, sizeof(struct ff_poll_list)));
    ff.workers[ff.n_workers++] = w;
    if (w->port_stats == NULL || atomic_load(&w->poll) == NULL)
        return -ENOMEM;
    rc = ff_idle_init(w);
    return rc != 0 ? rc : ff_upcall_init(w);
}

static int memory_start(const struct ff_conf *conf) {
    unsigned int lcore;
    size_t size;

    RTE_LCORE_FOREACH_WORKER(lcore)
    if (ff.n_workers < FF_MAX_WORKERS && worker_new(lcore) != 0)
        return -ENOMEM;
    size = rte_rcu_qsbr_get_memsize(FF_MAX_WORKERS);
    ff.rcu = aligned_alloc(64, RTE_ALIGN(size, 64));
    if (ff.rcu == NULL || rte_rcu_qsbr_init(ff.rcu, FF_MAX_WORKERS) != 0)
        return -ENOMEM;
    ff.pool = rte_pktmbuf_pool_create("ff_packets", conf->mbufs, POOL_CACHE, 0,
                                      RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (ff.pool == NULL)
        return -ENOMEM;
    if (ff_tap_init() != 0 || ff_tunnel_init() != 0)
        return -ENOMEM;
    return ff_flow_table_init();
}

int ff_init(const struct ff_conf *conf, char *err) {
    int rc;

    err[0] = '\0';
    ff_error_clear();
    rc = ff_log_open();
    if (rc == 0)
        rc = ff_event_init();
    if (rc == 0)
        rc = ff_sigbus_init();
    if (rc != 0) {
        snprintf(err, FF_ERR_LEN, "cannot start: %s", strerror(-rc));
        return rc;
    }
    rc = eal_start(conf, err);
    if (rc != 0)
        return rc;
    ff.tsc_hz = rte_get_tsc_hz();
    ff.parked_max = conf->parked_max;
    rc = memory_start(conf);
    if (rc != 0) {
        ff_error(err, "not enough memory for %u packet buffers", conf->mbufs);
        return rc;
    }
    if (ff.n_workers == 0) {
        snprintf(err, FF_ERR_LEN, "no worker: name at least one CPU for them");
        return -EINVAL;
    }
    for (unsigned int i = 0; i < ff.n_workers; i++)
        if (rte_eal_remote_launch(ff_worker_main, ff.workers[i], ff.workers[i]->lcore) != 0) {
            snprintf(err, FF_ERR_LEN, "worker %u does not start", i);
            return -EIO;
        }
    return 0;
}

void ff_stop(void) {
    char err[FF_ERR_LEN];

    for (uint16_t id = 1; id < FF_MAX_PORTS; id++)
        if (ff_port(id) != NULL)
            (void)ff_port_del(id, err);
    atomic_store(&ff.stop, true);
    ff_wake_all();
    rte_eal_mp_wait_lcore();
    ff_reclaim(); /* no reader is left: all of it */
    ff_flow_table_fini();
    ff_tunnel_fini();
    for (unsigned int i = 0; i < ff.n_workers; i++) {
        struct ff_worker *w = ff.workers[i];

        for (struct ff_command *c = w->issued, *next; c != NULL; c = next) {
            next = c->next;
            free(c->actions);
            free(c);
        }
        ff_idle_fini(w);
        free(atomic_load(&w->poll));
        free(w->parked_flows);
        free(w->parked_pkts);
        free(w->port_stats);
        free(w);
    }
    ff.n_workers = 0;
    free(ff.rcu);
    (void)rte_eal_cleanup();
    close(ff.event_fd);
    close(ff.upcall_fd);
    close(ff.tap_fd);
}
