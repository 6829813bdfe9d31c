/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings of shm_ring.h between threads, for ThreadSanitizer: a lend ring whose
 * consumer gives buffers back from another thread and holds some long, and a
 * post ring. Each buffer is written by one side and checked by the other.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "shm_borrow.h"
#include "shm_lend.h"
#include "shm_post.h"

#define SIZE 64u
#define FRAMES 20000u
#define BURST 32u
#define BUFFER 16u /* bytes of a buffer */

static struct ff_shm_ring *lend_ring, *post_ring;
static struct ff_borrower borrower;
static uint32_t data[2 * SIZE][BUFFER / 4];
static struct ff_shm_map map = {(uint8_t *)data, sizeof(data)};
static const struct ff_shm_maps maps = {&map, 1, 0};

/* From the taker to the giver: slots, in a queue that cannot overflow. */
static _Atomic uint16_t handed[SIZE];
static _Atomic uint32_t handed_tail;

static void check(bool ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static void fill(uint32_t *p, uint32_t number) {
    for (unsigned int i = 0; i < BUFFER / 4; i++)
        p[i] = number + i;
}

static void check_filled(const uint8_t *at, uint32_t number) {
    const uint32_t *p = (const uint32_t *)(const void *)at;

    check(p != NULL, "an address");
    for (unsigned int i = 0; i < BUFFER / 4; i++)
        check(p[i] == number + i, "a buffer was changed, lost or came twice");
}

/* ---- lend ring ---- */

static void *lend(void *arg) {
    static uint8_t mem[FF_LENDER_MEM(SIZE)] __attribute__((aligned(2)));
    uint16_t slots[FF_LEND_BATCH], spare[SIZE], buffer_of[SIZE];
    struct ff_lender l;
    uint32_t n_spare = SIZE;

    (void)arg;
    ff_lend_init(&l, lend_ring, SIZE, mem);
    for (uint16_t i = 0; i < SIZE; i++)
        spare[i] = i;
    for (uint32_t next = 0; next < FRAMES;) {
        uint32_t back = ff_lend_reclaim(&l, slots), n = next % BURST + 1;

        for (uint32_t i = 0; i < back; i++)
            spare[n_spare++] = buffer_of[slots[i]];
        check(n_spare == ff_lend_room(&l), "a buffer for each slot");
        for (; n > 0 && n_spare > 0 && next < FRAMES; n--, next++) {
            uint16_t b = spare[--n_spare];

            fill(data[b], next);
            buffer_of[ff_lend_put(&l, (struct ff_shm_desc){.offset = b * BUFFER, .len = BUFFER})] =
                b;
        }
        ff_lend_publish(&l, 1, BUFFER);
        if (n_spare == 0)
            sched_yield();
    }
    while (ff_lend_lent(&l) > 0)
        (void)ff_lend_reclaim(&l, slots);
    return NULL;
}

static void *borrow(void *arg) {
    uint32_t tail = 0;

    (void)arg;
    for (uint32_t next = 0; next < FRAMES;) {
        unsigned int fault = FF_RING_GOOD;
        uint32_t n = ff_borrow_ready(&borrower, BURST, &fault);

        check(fault == FF_RING_GOOD, "a fault");
        if (n == 0)
            sched_yield();
        for (uint32_t i = 0; i < n; i++) {
            struct ff_shm_desc d;

            check(ff_borrow_read(&borrower, i, &d) == FF_RING_GOOD, "a slot or lap");
            ff_borrow_take(&borrower, &d);
            check_filled(ff_shm_at(&maps, &d), next++);
            atomic_store(&handed[tail++ % SIZE], d.slot);
            atomic_store(&handed_tail, tail);
        }
        ff_borrow_advance(&borrower, n);
    }
    return NULL;
}

static void *give(void *arg) {
    uint16_t held[SIZE / 4];
    uint32_t n_held = 0;

    (void)arg;
    for (uint32_t head = 0; head < FRAMES;) {
        if (head == atomic_load(&handed_tail)) {
            sched_yield();
            continue;
        }
        if (head % 5 == 0 && n_held < SIZE / 4)
            held[n_held++] = atomic_load(&handed[head % SIZE]);
        else
            ff_borrow_give(&borrower, atomic_load(&handed[head % SIZE]));
        head++;
        if (head % 97 == 0 || head == FRAMES)
            while (n_held > 0)
                ff_borrow_give(&borrower, held[--n_held]);
    }
    return NULL;
}

/* ---- post ring ---- */

static void *post(void *arg) {
    static uint8_t mem[FF_POSTER_MEM(SIZE)] __attribute__((aligned(2)));
    struct ff_poster p;
    uint16_t at[SIZE];

    (void)arg;
    ff_post_init(&p, post_ring, SIZE, mem);
    for (uint16_t i = 0; i < SIZE; i++)
        at[ff_post_put(&p, 0, (SIZE + i) * BUFFER, BUFFER)] = (uint16_t)(SIZE + i);
    ff_post_publish(&p);
    for (uint32_t next = 0; next < FRAMES;) {
        unsigned int fault = FF_RING_GOOD;
        uint32_t n = ff_post_ready(&p, BURST, &fault);

        check(fault == FF_RING_GOOD, "a fault of the post ring");
        if (n == 0)
            sched_yield();
        for (uint32_t i = 0; i < n; i++) {
            uint32_t index = p.taken & p.mask;
            uint16_t b = at[index];
            struct ff_shm_used u;

            check(ff_post_read(&p, 0, &u) == FF_RING_GOOD && u.len == BUFFER, "a used entry");
            check_filled((const uint8_t *)data[b], next++);
            ff_post_take(&p, 1);
            at[ff_post_put(&p, 0, b * BUFFER, BUFFER)] = b;
        }
        ff_post_publish(&p);
    }
    return NULL;
}

static void *fill_posted(void *arg) {
    struct ff_filler f;

    (void)arg;
    ff_fill_init(&f, post_ring, SIZE);
    for (uint32_t next = 0; next < FRAMES;) {
        unsigned int fault = FF_RING_GOOD;
        uint32_t n = ff_fill_ready(&f, BURST, &fault);

        check(fault == FF_RING_GOOD, "a fault of the filler");
        if (n == 0)
            sched_yield();
        if (n > FRAMES - next)
            n = FRAMES - next;
        for (uint32_t i = 0; i < n; i++) {
            struct ff_shm_desc d = ff_fill_read(&f, i);

            fill((uint32_t *)(void *)ff_shm_at(&maps, &d), next++);
            ff_fill_put(&f, i, BUFFER, false);
        }
        ff_fill_publish(&f, n);
    }
    return NULL;
}

static struct ff_shm_ring *ring_new(void) {
    struct ff_shm_ring *ring = aligned_alloc(64, ff_ring_bytes(SIZE));

    check(ring != NULL, "no memory");
    memset(ring, 0, ff_ring_bytes(SIZE));
    ff_ring_make(ring, SIZE, 1);
    return ring;
}

int main(void) {
    static uint8_t mem[FF_BORROWER_MEM(SIZE)];
    void *(*const roles[])(void *) = {lend, borrow, give, post, fill_posted};
    pthread_t threads[sizeof(roles) / sizeof(roles[0])];

    lend_ring = ring_new();
    post_ring = ring_new();
    ff_borrow_init(&borrower, lend_ring, SIZE, mem);
    for (unsigned int i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
        check(pthread_create(&threads[i], NULL, roles[i], NULL) == 0, "no thread");
    for (unsigned int i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
        pthread_join(threads[i], NULL);
    free(lend_ring);
    free(post_ring);
    return 0;
}
