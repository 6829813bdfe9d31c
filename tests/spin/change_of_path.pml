/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CHANGE OF PATH of ff_shm.h, both ways, with the ring between sender and
 * receiver: every interleaving of sender A, the switch's worker, receiver B, and
 * the control thread. A step is one access to memory that others see; what is
 * written behind an index, and then the index, are one, as nobody reads beyond it. A sends
 * FRAMES frames to B while the control thread opens and closes a shortcut ROUNDS
 * times, with other numbers each time. One of the frames may be parked on its way.
 *
 * B must take the frames in order, each once. With mistakes that the rules are there
 * to avoid (EAGER, EARLY, HASTY) the model must fail, and with REACHED its end, which
 * shows that there is one.
 */
#ifndef FRAMES
#define FRAMES 3
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#define SLOTS 2 /* of a shortcut's ring */
#define MARKER 100

#define IN_FREE 0
#define IN_OPENING 1
#define IN_CLOSING 2

/* the port rings: lend ring of A, post ring of B, with room for all */
byte lend[FRAMES + ROUNDS + 2];
byte lend_tail;
byte post[FRAMES + 1];
byte used_tail;

/* A's table, and B's; entry r is of round r */
byte out = 0; /* epoch, 0: none */
byte in_state[ROUNDS + 1];
bool opened[ROUNDS + 1];
byte open_at[ROUNDS + 1];

/* the shortcut's ring of each round, written over when its slots come back */
typedef Ring {
    byte frame[SLOTS];
    byte lap[SLOTS]; /* in the descriptor */
    byte mark[SLOTS];
    byte tail;
}
Ring ring[ROUNDS + 1];

/* DROP of a round's shortcut, and the answers: A's between two bursts, then B's */
byte drop = 0, a_done = 0, b_done = 0;
bool parked = false, was_parked = false; /* a frame of A waits for its verdict in the worker */

active proctype A() {
    byte next = 1, path = 0, seen, lap[SLOTS], sent = 0, slot;

    do
    :: next <= FRAMES || out != path || a_done < ROUNDS ->
        /* a burst: the table is looked at, and one frame sent, or none */
        seen = out;
        if
        :: seen != path && seen != 0 ->
            d_step {
                lend[lend_tail] = MARKER + seen;
                lend_tail++;
                lap[0] = 0;
                lap[1] = 0;
                sent = 0
            }
        :: else
        fi;
        path = seen;
        if
        :: drop > a_done && path != drop -> a_done = drop
        :: else
        fi;
        if
        :: next <= FRAMES && path == 0 ->
            d_step {
                lend[lend_tail] = next;
                lend_tail++;
                next++
            }
        :: next <= FRAMES && path != 0 ->
            slot = sent % SLOTS;
            if
            :: ring[path].mark[slot] == lap[slot] ->
                d_step {
                    lap[slot]++;
                    ring[path].frame[slot] = next;
                    ring[path].lap[slot] = lap[slot];
                    ring[path].tail++;
                    sent++;
                    next++
                }
            :: else /* no slot is free: the burst ends */
            fi
        :: true /* nothing to send */
        fi
    :: next > FRAMES && out == path && a_done == ROUNDS -> break
    od
}

active proctype worker() {
    byte head = 0, what, held = 0;

end:
    do
    :: !parked && held != 0 -> /* the verdict has come */
        d_step {
            post[used_tail] = held;
            held = 0;
            used_tail++
        }
    :: !parked && held == 0 && head < lend_tail ->
        d_step {
            what = lend[head];
            head++
        }
        if
        :: what > MARKER ->
            what = what - MARKER;
            if
            :: in_state[what] != IN_FREE ->
#ifdef EARLY /* opens the ring before it says from where on */
                opened[what] = true;
                open_at[what] = used_tail
#else
                open_at[what] = used_tail;
                opened[what] = true
#endif
            :: else /* of one that was taken back meanwhile */
            fi
        :: what < MARKER ->
            if
            :: d_step {
                   post[used_tail] = what;
                   used_tail++
               }
            :: !was_parked ->
               held = what;
               was_parked = true;
               parked = true
            fi
        fi
    od
}

active proctype slow_path() {
end:
    do
    :: parked -> parked = false
    od
}

active proctype control() {
    byte round = 1;

    do
    :: round <= ROUNDS ->
        in_state[round] = IN_OPENING;
        out = round;
        /* any time later */
        in_state[round] = IN_CLOSING;
        out = 0;
        drop = round;
#ifdef OVERLAP /* the next one is opened while B still has this one */
        (a_done == round);
#else
        (b_done == round);
#endif
        round++
    :: else -> break
    od
}

byte taken = 0, last = 0;
byte pos[ROUNDS + 1];

inline take_frame(number) {
    assert(number == last + 1);
    last = number
}

/* Takes what came by the switch, up to `limit`. */
inline take_post(limit) {
    do
    :: taken < limit ->
        d_step {
            take_frame(post[taken]);
            taken++
        }
    :: else -> break
    od
}

inline take_ring(r) {
    do
    :: pos[r] < ring[r].tail ->
        d_step {
            assert(ring[r].lap[pos[r] % SLOTS] == pos[r] / SLOTS + 1);
            take_frame(ring[r].frame[pos[r] % SLOTS])
        }
        d_step {
            ring[r].mark[pos[r] % SLOTS] = ring[r].lap[pos[r] % SLOTS];
            pos[r]++
        }
    :: else -> break
    od
}

active proctype B() {
    byte limit, r, state[ROUNDS + 1], at[ROUNDS + 1], asked;
    bool open[ROUNDS + 1];

    do
    :: last < FRAMES || b_done < ROUNDS ->
        asked = a_done; /* DROP comes to B after A's answer */
#ifndef HASTY /* reads the table before the index */
        limit = used_tail;
#endif
        /* the table is read in one piece: who sees its generation change reads it again */
        d_step {
            r = 1;
            do
            :: r <= ROUNDS ->
                state[r] = in_state[r];
                open[r] = opened[r];
                at[r] = open_at[r];
                r++
            :: else -> break
            od
        }
#ifdef HASTY
        limit = used_tail;
#endif
#ifdef EAGER /* takes from the switch before it empties rings that close */
        take_post(limit);
#endif
        r = 1;
        do
        :: r <= ROUNDS ->
            if
            :: open[r] && state[r] == IN_CLOSING -> take_post(at[r]); take_ring(r)
            :: else
            fi;
            r++
        :: else -> break
        od;
        r = 1;
        do
        :: r <= ROUNDS ->
            if
            :: open[r] && state[r] == IN_OPENING -> take_post(at[r]); take_ring(r)
            :: else
            fi;
            r++
        :: else -> break
        od;
        take_post(limit);
        /* answers DROP: the ring is empty, and A does not use it */
        if
        :: asked > b_done && pos[b_done + 1] == ring[b_done + 1].tail ->
            in_state[b_done + 1] = IN_FREE;
            b_done++
        :: else
        fi
    :: last == FRAMES && b_done == ROUNDS -> break
    od;
#ifdef REACHED
    assert(false)
#endif
}
