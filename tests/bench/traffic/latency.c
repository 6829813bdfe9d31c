/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the first packet takes through a switch that sleeps, and how long a
 * bare eventfd takes to wake another process on the switch's core.
 *
 *   latency EAL-OPTIONS -- CPU
 *
 * One thread sends on port 0 and expects the frame on port 1. A child that was
 * forked at the start, pinned to CPU, sleeps in a read of an eventfd; woken, it
 * writes to shared memory, where the same thread waits as it does for a frame.
 * The first line on stdout, {"ready": true, ...}, comes when the ports run. Then:
 *
 *   sample N US   N times a frame and N times an eventfd, alternating, each
 *                 after a pause of US / 2 to 3 * US / 2 microseconds; answers
 *                 the delays in nanoseconds, 0 for a frame that did not come
 *   quit
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_pause.h>

#include "frames.h"

#define BURST 32
#define RING 256
#define POOL 2047
#define PORTS 2
#define SIZE 64
#define LOST_MS 200u
#define SAMPLES_MAX 100000u

static struct rte_mempool *pool;
static struct template templates[PORTS];

/* The eventfd's peer. `seen` is its only shared word: the number of wake-ups. */
static int wake_fd;
static uint64_t *seen;
static pid_t child;

static void child_main(int cpu) {
    cpu_set_t set;
    uint64_t n;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        _exit(EXIT_FAILURE);
    while (read(wake_fd, &n, sizeof(n)) == sizeof(n))
        __atomic_store_n(seen, *seen + 1, __ATOMIC_RELEASE);
    _exit(EXIT_FAILURE);
}

/* Before EAL has threads. */
static int child_start(int cpu) {
    wake_fd = eventfd(0, EFD_CLOEXEC);
    seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (wake_fd < 0 || seen == MAP_FAILED)
        return -1;
    child = fork();
    if (child == 0)
        child_main(cpu);
    return child;
}

static uint64_t to_ns(uint64_t cycles) {
    return (uint64_t)((double)cycles * NS_PER_S / (double)rte_get_tsc_hz());
}

static uint64_t deadline(uint64_t start) {
    return start + rte_get_tsc_hz() / 1000 * LOST_MS;
}

static uint64_t eventfd_delay(void) {
    uint64_t one = 1, before = __atomic_load_n(seen, __ATOMIC_RELAXED), start = rte_rdtsc();

    if (write(wake_fd, &one, sizeof(one)) != sizeof(one))
        return 0;
    while (__atomic_load_n(seen, __ATOMIC_ACQUIRE) == before)
        if (rte_rdtsc() > deadline(start))
            return 0;
    return to_ns(rte_rdtsc() - start);
}

/* Takes what has come out of a port; returns how many frames of the other port's. */
static unsigned int take(uint16_t port) {
    struct rte_mbuf *burst[BURST];
    uint16_t n = rte_eth_rx_burst(port, 0, burst, BURST);
    unsigned int ours = 0;

    for (uint16_t i = 0; i < n; i++) {
        ours += template_owns(&templates[1 - port], burst[i]);
        rte_pktmbuf_free(burst[i]);
    }
    return ours;
}

/* From port `from` to the other. */
static uint64_t frame_delay(uint16_t from) {
    struct rte_mbuf *m = frame_make(pool, &templates[from], SIZE);
    uint64_t start;

    if (m == NULL)
        return 0;
    frame_address(&templates[from], m, 0, 0);
    while (take(0) + take(1) > 0) { /* one that came too late */
    }
    start = rte_rdtsc();
    if (rte_eth_tx_burst(from, 0, &m, 1) != 1) {
        rte_pktmbuf_free(m);
        return 0;
    }
    while (take(1 - from) == 0)
        if (rte_rdtsc() > deadline(start))
            return 0;
    return to_ns(rte_rdtsc() - start);
}

static void pause_us(uint32_t us) {
    rte_delay_us_sleep(us / 2 + (us > 0 ? (uint32_t)rand() % us : 0));
}

static void print_delays(const char *name, const uint64_t *ns, uint32_t n) {
    printf("\"%s\": [", name);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%" PRIu64, i ? ", " : "", ns[i]);
    printf("]");
}

static void sample(uint32_t n, uint32_t us) {
    uint64_t *frames = calloc(2 * (size_t)n, sizeof(*frames)), *events = frames + n;

    if (frames == NULL) {
        printf("{\"error\": \"no memory\"}\n");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        pause_us(us);
        frames[i] = frame_delay(0);
        pause_us(us);
        events[i] = eventfd_delay();
    }
    printf("{");
    print_delays("frame", frames, n);
    printf(", ");
    print_delays("eventfd", events, n);
    printf("}\n");
    free(frames);
}

static int start_port(uint16_t port) {
    const struct rte_eth_conf conf = {0};
    int ret = rte_eth_dev_configure(port, 1, 1, &conf);

    if (ret == 0)
        ret = rte_eth_rx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL, pool);
    if (ret == 0)
        ret = rte_eth_tx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL);
    if (ret == 0)
        ret = rte_eth_dev_start(port);
    return ret;
}

static void start_ports(void) {
    pool = rte_pktmbuf_pool_create("frames", POOL, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (pool == NULL || rte_eth_dev_count_avail() != PORTS)
        rte_exit(EXIT_FAILURE, "latency: give it two ports and memory for %d frames\n", POOL);
    for (uint16_t port = 0; port < PORTS; port++) {
        int ret = start_port(port);

        if (ret < 0)
            rte_exit(EXIT_FAILURE, "latency: port %u does not start: %s\n", port, strerror(-ret));
        template_make(&templates[port], (uint8_t)port, (uint8_t)(1 - port), SIZE, false);
    }
}

int main(int argc, char **argv) {
    char line[64];
    uint32_t n, us;

    if (child_start(atoi(argv[argc - 1])) < 0 || rte_eal_init(argc, argv) < 0)
        rte_exit(EXIT_FAILURE, "latency: EAL or the child did not start\n");
    start_ports();
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("{\"ready\": true, \"child\": %d}\n", (int)child);
    while (fgets(line, sizeof(line), stdin) != NULL && strcmp(line, "quit\n") != 0) {
        if (sscanf(line, "sample %" SCNu32 " %" SCNu32, &n, &us) == 2 && n > 0 &&
            n <= SAMPLES_MAX) {
            /* the switch learns where both are, and makes the flow */
            (void)frame_delay(1);
            (void)frame_delay(0);
            sample(n, us);
        } else {
            printf("{\"error\": \"bad command\"}\n");
        }
    }
    for (uint16_t port = 0; port < PORTS; port++) {
        rte_eth_dev_stop(port);
        rte_eth_dev_close(port);
    }
    rte_eal_cleanup();
    kill(child, SIGKILL);
    return 0;
}
