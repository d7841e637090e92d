/* How every entry point begins: who is asked, is the driver there, and does the scenario want this call to fail or hang. */
#ifndef CALLS_H
#define CALLS_H

#include "scenario.h"

typedef struct handle *nvmlDevice_t;

/* Begins a call on a device: counts it, plays the faults, and on OK returns with the lock held and *device set.
 * Every OK must be followed by scenario_unlock(). */
int begin(nvmlDevice_t handle, const char *call, scenario_t **scenario, device_t **device);
/* The same without a device; `needs_init` is false for nvmlInit and nvmlErrorString only. */
int begin_system(const char *call, int needs_init, scenario_t **scenario);

/* Whether nvmlInit was called since the driver was loaded, and the code that a fault gives `call`; both with the lock held. */
int is_initialised(const scenario_t *scenario);
int error_of(const scenario_t *scenario, const device_t *device, const char *call);

nvmlDevice_t handle_of(int gpu, int mig); /* mig -1: the GPU itself */
int handle_gpu(nvmlDevice_t handle);
int handle_mig(nvmlDevice_t handle);

/* The numbers that the scenario gives for `key` on this device now; NOT_SUPPORTED when it gives none. */
int answer(nvmlDevice_t handle, const char *call, const char *key, uint64_t numbers[MAX_NUMBERS]);

#endif
