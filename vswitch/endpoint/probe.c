/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --vdev net_ff0,path=/run/ffswitch/ports/NAME/ff.sock[,mac=00:11:22:33:44:55]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <bus_vdev_driver.h>
#include <ethdev_vdev.h>
#include <rte_kvargs.h>

#include "control.h"

RTE_LOG_REGISTER(ff_log_type, pmd.net.ff, NOTICE);

static const char *const arguments[] = {"path", "mac", NULL};

static int read_path(const char *key, const char *value, void *arg) {
    struct ff_dev *dev = arg;

    (void)key;
    if (value == NULL || strlen(value) >= sizeof(dev->path)) {
        FF_LOG(ERR, dev,
               "path= takes a socket of at most %zu bytes, such as "
               "/run/ffswitch/ports/web0/ff.sock",
               sizeof(dev->path) - 1);
        return -EINVAL;
    }
    strcpy(dev->path, value);
    return 0;
}

static int read_mac(const char *key, const char *value, void *arg) {
    struct ff_dev *dev = arg;

    (void)key;
    if (value == NULL || rte_ether_unformat_addr(value, &dev->mac) != 0 ||
        !rte_is_valid_assigned_ether_addr(&dev->mac)) {
        FF_LOG(ERR, dev, "mac=%s is no unicast MAC address such as 02:00:00:00:00:01",
               value == NULL ? "" : value);
        return -EINVAL;
    }
    return 0;
}

static int read_arguments(struct ff_dev *dev, const char *text) {
    struct rte_kvargs *args = rte_kvargs_parse(text, arguments);
    int rc = -EINVAL;

    if (args == NULL) {
        FF_LOG(ERR, dev, "unknown argument in '%s': there are path= and mac=", text);
        return rc;
    }
    if (rte_kvargs_count(args, "path") != 1)
        FF_LOG(ERR, dev, "give it the port's socket: path=/run/ffswitch/ports/NAME/ff.sock");
    else if (rte_kvargs_process(args, "path", read_path, dev) == 0 &&
             rte_kvargs_process(args, "mac", read_mac, dev) == 0)
        rc = 0;
    rte_kvargs_free(args);
    return rc;
}

static struct ff_dev *make_device(const char *name) {
    struct ff_dev *dev = calloc(1, sizeof(*dev));

    if (dev == NULL)
        return NULL;
    dev->region = calloc(FF_NUMBERS, sizeof(*dev->region));
    dev->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    dev->sock = -1;
    snprintf(dev->name, sizeof(dev->name), "%s", name);
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->changed, NULL);
    if (dev->region == NULL || dev->wake_fd < 0) {
        ff_dev_free(dev);
        return NULL;
    }
    return dev;
}

static int make_port(struct rte_vdev_device *vdev, struct ff_dev *dev) {
    struct rte_eth_dev *eth = rte_eth_vdev_allocate(vdev, 0);
    int rc;

    if (eth == NULL) {
        ff_dev_free(dev);
        return -ENOMEM;
    }
    dev->eth = eth;
    rc = ff_control_start(dev);
    if (rc != 0) {
        FF_LOG(ERR, dev,
               "cannot connect to %s: %s; is there a port of type ff, and is its "
               "directory mounted?",
               dev->path, dev->error);
        ff_control_quit(dev);
        ff_control_end(dev);
        rte_eth_dev_release_port(eth);
        return rc;
    }
    eth->data->dev_private = dev;
    eth->data->mac_addrs = &dev->mac;
    eth->data->dev_flags |= RTE_ETH_DEV_INTR_LSC | RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS;
    eth->data->promiscuous = 1;
    eth->data->all_multicast = 1;
    eth->dev_ops = &ff_eth_ops;
    eth->rx_pkt_burst = ff_rx_burst;
    eth->tx_pkt_burst = ff_tx_burst;
    rte_eth_dev_probing_finish(eth);
    return 0;
}

static int probe(struct rte_vdev_device *vdev) {
    struct ff_dev *dev = make_device(rte_vdev_device_name(vdev));
    int rc;

    if (dev == NULL)
        return -ENOMEM;
    if (rte_eal_process_type() != RTE_PROC_PRIMARY) {
        FF_LOG(ERR, dev,
               "is for primary processes only: start the application without "
               "--proc-type=secondary");
        rc = -ENOTSUP;
    } else if ((rc = ff_quiesce_init()) != 0) {
        FF_LOG(ERR, dev, "membarrier(2) is not to be had here: %s", strerror(-rc));
    } else if ((rc = ff_sigbus_init()) != 0) {
        FF_LOG(ERR, dev, "no handler for SIGBUS: %s", strerror(-rc));
    } else if ((rc = read_arguments(dev, rte_vdev_device_args(vdev))) == 0) {
        return make_port(vdev, dev);
    }
    ff_dev_free(dev);
    return rc;
}

static int remove_device(struct rte_vdev_device *vdev) {
    struct rte_eth_dev *eth = rte_eth_dev_allocated(rte_vdev_device_name(vdev));

    return eth == NULL ? 0 : rte_eth_dev_close(eth->data->port_id);
}

static struct rte_vdev_driver driver = {.probe = probe, .remove = remove_device};

RTE_PMD_REGISTER_VDEV(net_ff, driver);
RTE_PMD_REGISTER_PARAM_STRING(net_ff, "path=<socket> mac=<address>");
