/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A neighbour that writes what it likes: into rings, marks and a table that are shared with it.
 * scribbler FD BYTES ROUNDS SEED HEAD...: writes ROUNDS times to the BYTES of the file FD, which
 * begins with rings at the offsets HEAD, whose indices are its favourite.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ff_shm.h"

static uint64_t state;

static uint64_t any(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

int main(int argc, char **argv) {
    size_t bytes = argc > 5 ? strtoull(argv[2], NULL, 0) : 0;
    uint8_t *map = bytes > 0
                       ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0)
                       : MAP_FAILED;

    if (map == MAP_FAILED) {
        fprintf(stderr, "usage: scribbler FD BYTES ROUNDS SEED HEAD...\n");
        return 2;
    }
    state = strtoull(argv[4], NULL, 0) | 1;
    for (uint64_t round = strtoull(argv[3], NULL, 0); round > 0; round--) {
        uint64_t r = any();
        size_t head = strtoull(argv[5 + r % (uint64_t)(argc - 5)], NULL, 0);
        struct ff_shm_ring *ring = (void *)(map + head);

        switch (r >> 32 & 7) {
        case 0: /* an index a little further, */
            __atomic_fetch_add(&ring->tail, (uint32_t)(any() % 70), __ATOMIC_RELEASE);
            break;
        case 1: /* or anywhere */
            __atomic_store_n(&ring->tail, (uint32_t)any(), __ATOMIC_RELEASE);
            break;
        case 2:
            __atomic_store_n(&ring->used_tail, (uint32_t)any(), __ATOMIC_RELEASE);
            break;
        case 3: /* a byte, or */
            map[head + any() % (bytes - head)] = (uint8_t)any();
            break;
        default: /* a descriptor with some bits turned over */
            ((uint64_t *)(void *)(map + head + FF_RING_HEAD))[any() % 128] ^= any() & any() & any();
        }
    }
    return 0;
}
