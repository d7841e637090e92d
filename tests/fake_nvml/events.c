/* Event sets: what the scenario's `event` lines say, told once to each set that had the device registered by then. */
#include <stdlib.h>
#include <time.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_GPUS 64

typedef struct { uint64_t mask; unsigned told; } registration_t;
typedef struct event_set { registration_t gpus[MAX_GPUS]; } *nvmlEventSet_t;
typedef struct { nvmlDevice_t device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event_data_t;

EXPORT int nvmlEventSetCreate(nvmlEventSet_t *out)
{
    scenario_t *scenario;
    int result = begin_system("nvmlEventSetCreate", 1, &scenario);
    if (result != OK)
        return result;
    *out = calloc(1, sizeof **out);
    scenario_unlock();
    return OK;
}

EXPORT int nvmlEventSetFree(nvmlEventSet_t set)
{
    scenario_t *scenario;
    int result = begin_system("nvmlEventSetFree", 1, &scenario);
    if (result != OK)
        return result;
    free(set);
    scenario_unlock();
    return OK;
}

/* What has happened until now is history, of which the driver tells nothing. */
EXPORT int nvmlDeviceRegisterEvents(nvmlDevice_t handle, unsigned long long mask, nvmlEventSet_t set)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlDeviceRegisterEvents", &scenario, &device);
    if (result != OK)
        return result;
    registration_t *registration = &set->gpus[handle_gpu(handle)];
    registration->mask |= mask;
    for (int i = 0; i < device->event_count; i++)
        if (device->events[i].at <= scenario_seconds(scenario) && device->events[i].id > registration->told)
            registration->told = device->events[i].id;
    scenario_unlock();
    return OK;
}

/* The next event for the set; a lost GPU in it fails every wait, once there is nothing more to tell. */
static int next_event(const scenario_t *scenario, nvmlEventSet_t set, event_data_t *out)
{
    int result = TIMED_OUT;
    for (int gpu = 0; gpu < scenario->gpu_count && gpu < MAX_GPUS; gpu++) {
        registration_t *registration = &set->gpus[gpu];
        const device_t *device = scenario->gpus[gpu];
        if (!registration->mask)
            continue;
        for (int i = 0; i < device->event_count; i++) {
            const event_t *event = &device->events[i];
            if (event->id <= registration->told || event->at > scenario_seconds(scenario))
                continue;
            registration->told = event->id;
            if (!(event->type & registration->mask))
                continue;
            *out = (event_data_t){handle_of(gpu, -1), event->type, event->data, 0xffffffffu, 0xffffffffu};
            return OK;
        }
        if (error_of(scenario, device, "nvmlEventSetWait_v2") != OK)
            result = error_of(scenario, device, "nvmlEventSetWait_v2");
    }
    return result;
}

static int has_events(const scenario_t *scenario)
{
    for (int gpu = 0; gpu < scenario->gpu_count; gpu++)
        if (scenario->gpus[gpu]->event_count)
            return 1;
    return 0;
}

EXPORT int nvmlEventSetWait_v2(nvmlEventSet_t set, event_data_t *out, unsigned timeout_ms)
{
    scenario_t *scenario;
    int result = begin_system("nvmlEventSetWait_v2", 1, &scenario);
    if (result != OK)
        return result;
    for (long waited_ms = 0, pause_ms = 0;; waited_ms += pause_ms) {
        result = is_initialised(scenario) ? next_event(scenario, set, out) : UNINITIALIZED;
        /* A driver sleeps until something happens: looking often costs processor time that the monitor would be charged for. */
        pause_ms = has_events(scenario) ? 50 : 250;
        scenario_unlock();
        if (result != TIMED_OUT || waited_ms >= (long)timeout_ms)
            return result;
        if (pause_ms > (long)timeout_ms - waited_ms)
            pause_ms = (long)timeout_ms - waited_ms;
        struct timespec pause = {0, pause_ms * 1000000};
        nanosleep(&pause, NULL);
        scenario_lock();
        scenario = scenario_now();
    }
}
