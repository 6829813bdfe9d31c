/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shortcuts: the control thread's and the workers' part of CHANGE OF PATH in
 * ff_shm.h. Entry i of a table's out[] is the shortcut of number i.
 */
#include <errno.h>
#include <stdlib.h>

#include "memport.h"

static struct ff_link *links; /* opened and not yet freed */

/* ---- a table, whose readers are in containers -------------------------------- */

static void changed(struct ff_memport *m) {
    __atomic_fetch_add(&m->table->generation, 1, __ATOMIC_RELEASE);
}

static void in_open(struct ff_memport *m, const struct ff_shortcut *s) {
    struct ff_shm_in *in = &m->table->in[s->in];

    in->epoch = s->epoch;
    in->opened = 0;
    memset(in->open_at, 0, sizeof(in->open_at));
    __atomic_store_n(&in->state, FF_IN_OPENING, __ATOMIC_RELEASE);
    changed(m);
}

static void in_state(struct ff_memport *m, uint16_t number, uint32_t state) {
    __atomic_store_n(&m->table->in[number].state, state, __ATOMIC_RELEASE);
    changed(m);
}

static void out_open(struct ff_memport *m, const struct ff_shortcut *s) {
    struct ff_shm_out *out = &m->table->out[s->out];

    memcpy(out->mac, s->mac, sizeof(out->mac));
    out->number = s->out;
    out->max_len = s->max_len;
    __atomic_store_n(&out->epoch, s->epoch, __ATOMIC_RELEASE);
    changed(m);
}

static void out_close(struct ff_memport *m, uint16_t number) {
    __atomic_store_n(&m->table->out[number].epoch, 0, __ATOMIC_RELEASE);
    changed(m);
}

/* ---- control thread ---------------------------------------------------------- */

static struct ff_link **find(const struct ff_shortcut *s) {
    struct ff_link **at = &links;

    while (*at != NULL && (*at)->epoch != s->epoch)
        at = &(*at)->next;
    return at;
}

static bool in_use(const struct ff_memport *to, uint16_t in) {
    for (const struct ff_link *l = links; l != NULL; l = l->next)
        if (l->to == to && !l->to_gone && l->in == in)
            return true;
    return false;
}

int ff_shortcut_open(const struct ff_shortcut *s) {
    struct ff_memport *from = ff_memport(s->from), *to = ff_memport(s->to);
    struct ff_link *l;

    if (from == NULL || to == NULL || !from->attached || !to->attached)
        return -ENOTCONN;
    if (from == to || s->out >= FF_SHM_SHORTCUTS || s->in >= FF_SHM_SHORTCUTS || s->epoch == 0 ||
        s->queues == 0 || s->queues > FF_SHM_QUEUES ||
        s->epoch <= atomic_load(&from->newest[s->out]))
        return -EINVAL;
    if (atomic_load(&from->links[s->out]) != NULL || in_use(to, s->in))
        return -EBUSY;
    l = malloc(sizeof(*l));
    if (l == NULL)
        return -ENOMEM;
    *l = (struct ff_link){
        .to = to,
        .in = s->in,
        .queues = s->queues,
        .epoch = s->epoch,
        .from = from,
        .out = s->out,
        .next = links,
    };
    links = l;
    atomic_store(&from->newest[s->out], s->epoch);
    atomic_store_explicit(&from->links[s->out], l, memory_order_release);
    in_open(to, s);
    out_open(from, s);
    return 0;
}

static void link_close(struct ff_link *l) {
    if (l->closed)
        return;
    l->closed = true;
    if (!l->to_gone)
        in_state(l->to, l->in, FF_IN_CLOSING);
    if (!l->from_gone)
        out_close(l->from, l->out);
}

int ff_shortcut_close(const struct ff_shortcut *s) {
    struct ff_link *l = *find(s);

    if (l != NULL)
        link_close(l);
    return 0;
}

/* Workers do not find the link any more. */
static void link_hide(struct ff_link *l) {
    if (!l->from_gone && atomic_load(&l->from->links[l->out]) == l)
        atomic_store(&l->from->links[l->out], NULL);
}

int ff_shortcut_free(const struct ff_shortcut *s) {
    struct ff_link **at = find(s), *l = *at;

    if (l == NULL)
        return 0;
    if (!l->closed)
        return -EBUSY;
    link_hide(l);
    *at = l->next;
    ff_synchronize(); /* a worker that came to a marker just now must not open the next one's ring
                       */
    if (!l->to_gone)
        in_state(l->to, l->in, FF_IN_FREE);
    free(l);
    return 0;
}

void ff_links_drop(struct ff_memport *m) {
    struct ff_link **at = &links, *l;

    while ((l = *at) != NULL) {
        if (l->from == m || l->to == m) {
            link_close(l);
            link_hide(l);
        }
        l->from_gone |= l->from == m;
        l->to_gone |= l->to == m;
        if (l->from_gone && l->to_gone) {
            *at = l->next;
            ff_retire(l);
        } else {
            at = &l->next;
        }
    }
}

/* ---- worker ---------------------------------------------------------------------- */

/* Step 4 of a change to a shortcut. */
static void open_ring(struct ff_link *l, unsigned int queue) {
    struct ff_memport *to = l->to;
    struct ff_shm_in *in = &to->table->in[l->in];

    for (unsigned int k = 0; k < to->rx_queues; k++)
        __atomic_store_n(&in->open_at[FF_SHM_QUEUES * queue + k],
                         __atomic_load_n(&to->out[k].ring.pos, __ATOMIC_ACQUIRE), __ATOMIC_RELAXED);
    __atomic_fetch_or(&in->opened, 1u << queue, __ATOMIC_RELEASE);
    changed(to);
}

enum ff_marker ff_marker_meet(const struct ff_worker *w, struct ff_memport *m, unsigned int queue,
                              const struct ff_shm_desc *d) {
    uint16_t number = d->region;
    uint32_t epoch = d->offset;
    struct ff_link *l;

    if (number >= FF_SHM_SHORTCUTS || d->flags & FF_DESC_MORE)
        return FF_MARKER_FORGED;
    l = atomic_load_explicit(&m->links[number], memory_order_acquire);
    if (l == NULL || l->epoch != epoch) /* of one that was taken back meanwhile, or of none */
        return epoch != 0 && epoch <= atomic_load(&m->newest[number]) ? FF_MARKER_DONE
                                                                      : FF_MARKER_FORGED;
    if (queue >= l->queues || atomic_load(&l->opened) & 1u << queue)
        return FF_MARKER_FORGED;
    if (w->parked_in[m->port->id][queue] > 0)
        return FF_MARKER_WAIT;
    open_ring(l, queue);
    atomic_fetch_or(&l->opened, 1u << queue);
    return FF_MARKER_DONE;
}
