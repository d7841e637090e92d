#include "calls.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_GPUS 64
#define MAX_MIGS 8
#define MAX_COUNTED 512

struct handle { int gpu, mig; };
static struct handle handles[MAX_GPUS][MAX_MIGS + 1];

static int references;
static long initialised_generation;
static char loaded_driver[80];

nvmlDevice_t handle_of(int gpu, int mig)
{
    struct handle *handle = &handles[gpu][mig + 1];
    handle->gpu = gpu;
    handle->mig = mig;
    return handle;
}

int handle_gpu(nvmlDevice_t handle) { return handle->gpu; }
int handle_mig(nvmlDevice_t handle) { return handle->mig; }

/* How often each call came, in a file that outlives a SIGKILL: records of a 56-byte name and a 64-bit count. */
typedef struct { char name[56]; uint64_t count; } counted_t;

static void count_call(const char *call)
{
    static counted_t *counted;
    static int tried;
    if (!tried) {
        tried = 1;
        const char *path = getenv("FAKE_NVML_COUNTS");
        int descriptor = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
        if (descriptor >= 0 && ftruncate(descriptor, MAX_COUNTED * sizeof(counted_t)) == 0) {
            counted = mmap(NULL, MAX_COUNTED * sizeof(counted_t), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
            close(descriptor);
        }
    }
    for (int i = 0; counted && i < MAX_COUNTED; i++) {
        if (!counted[i].name[0])
            snprintf(counted[i].name, sizeof counted[i].name, "%s", call);
        if (!strcmp(counted[i].name, call)) {
            __atomic_add_fetch(&counted[i].count, 1, __ATOMIC_RELAXED);
            return;
        }
    }
}

static void sleep_us(long us)
{
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

static const fault_t *fault_in(const device_t *device, const char *call, enum fault_kind kind)
{
    for (int i = 0; device && i < device->fault_count; i++) {
        const fault_t *fault = &device->faults[i];
        if (fault->kind == kind && (!strcmp(fault->call, call) || !strcmp(fault->call, "*")))
            return fault;
    }
    return NULL;
}

static const fault_t *fault_for(const scenario_t *scenario, const device_t *device, const char *call, enum fault_kind kind)
{
    const fault_t *fault = fault_in(scenario->system, call, kind);
    for (; !fault && device; device = device->parent)
        fault = fault_in(device, call, kind);
    return fault;
}

static device_t *find_device(const scenario_t *scenario, nvmlDevice_t handle)
{
    if (!handle || handle->gpu >= scenario->gpu_count)
        return NULL;
    device_t *gpu = scenario->gpus[handle->gpu];
    if (handle->mig < 0)
        return gpu;
    return handle->mig < gpu->mig_count ? gpu->migs[handle->mig] : NULL;
}

int is_initialised(const scenario_t *scenario)
{
    return references > 0 && initialised_generation == scenario->generation;
}

int error_of(const scenario_t *scenario, const device_t *device, const char *call)
{
    const fault_t *fault = fault_for(scenario, device, call, FAULT_ERROR);
    return fault ? (int)fault->argument : OK;
}

static int begin_call(nvmlDevice_t handle, int has_device, const char *call, int needs_init, scenario_t **scenario, device_t **device)
{
    const fault_t *fault;
    int slept = 0;
    count_call(call);
    for (;;) {
        scenario_lock();
        *scenario = scenario_now();
        if (needs_init && !is_initialised(*scenario)) {
            scenario_unlock();
            return UNINITIALIZED;
        }
        *device = has_device ? find_device(*scenario, handle) : NULL;
        long pause = 0;
        if (fault_for(*scenario, *device, call, FAULT_HANG))
            pause = 5000; /* and ask again: the switch may be taken back */
        else if (!slept && (fault = fault_for(*scenario, *device, call, FAULT_SLOW)))
            slept = (int)(pause = fault->argument);
        if (!pause)
            break;
        scenario_unlock();
        sleep_us(pause);
    }
    int result = error_of(*scenario, *device, call);
    if (result == OK && has_device && !*device)
        result = INVALID_ARGUMENT;
    if (result != OK)
        scenario_unlock();
    return result;
}

int begin(nvmlDevice_t handle, const char *call, scenario_t **scenario, device_t **device)
{
    return begin_call(handle, 1, call, 1, scenario, device);
}

int begin_system(const char *call, int needs_init, scenario_t **scenario)
{
    device_t *none;
    return begin_call(NULL, 0, call, needs_init, scenario, &none);
}

int answer(nvmlDevice_t handle, const char *call, const char *key, uint64_t numbers[MAX_NUMBERS])
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, call, &scenario, &device);
    if (result != OK)
        return result;
    const value_t *value = device_value(device, key);
    if (value && value->point_count)
        value_at(value, scenario_seconds(scenario), numbers);
    else
        result = NOT_SUPPORTED;
    scenario_unlock();
    return result;
}

static int initialise(const char *call)
{
    scenario_t *scenario;
    int result = begin_system(call, 0, &scenario);
    if (result != OK)
        return result;
    const value_t *driver = device_value(scenario->system, "nvmlSystemGetDriverVersion");
    const char *version = driver && driver->text ? driver->text : "";
    /* The library that a process has mapped belongs to the driver that was there then: after an upgrade it never fits again. */
    if (loaded_driver[0] && strcmp(loaded_driver, version)) {
        result = LIB_RM_VERSION_MISMATCH;
    } else {
        snprintf(loaded_driver, sizeof loaded_driver, "%s", version);
        references = initialised_generation == scenario->generation ? references + 1 : 1;
        initialised_generation = scenario->generation;
    }
    scenario_unlock();
    return result;
}

EXPORT int nvmlInitWithFlags(unsigned flags) { (void)flags; return initialise("nvmlInitWithFlags"); }
EXPORT int nvmlInit_v2(void) { return initialise("nvmlInit_v2"); }

EXPORT int nvmlShutdown(void)
{
    scenario_t *scenario;
    int result = begin_system("nvmlShutdown", 0, &scenario);
    if (result != OK)
        return result;
    result = references ? OK : UNINITIALIZED;
    references -= references > 0;
    scenario_unlock();
    return result;
}
