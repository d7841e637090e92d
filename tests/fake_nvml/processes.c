/* Lists of processes on a device, in each layout that drivers have written, and their utilisation. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))

/* The layout of drivers R510 to R535.43 and from 535.98 on; early R535 appended a 64-bit count of protected bytes to v3. */
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_v2_t;
typedef struct { process_v2_t v2; unsigned long long protected_bytes; } process_detail_t;

static int listed(const process_t *process, char kind, double t)
{
    return process->kind == kind && t >= process->from && t < process->until;
}

static int list(nvmlDevice_t handle, const char *call, char kind, int version, unsigned *count, char *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, call, &scenario, &device);
    if (result != OK)
        return result;
    int stride = version == 3 ? scenario->process_struct_bytes : (int)sizeof(process_v2_t);
    double t = scenario_seconds(scenario);
    unsigned found = 0;
    for (int i = 0; i < device->process_count; i++) {
        const process_t *process = &device->processes[i];
        if (!listed(process, kind, t))
            continue;
        if (out && found < *count) {
            process_detail_t row = {{process->pid, process->bytes, process->gpu_instance, process->compute_instance}, 0};
            memcpy(out + (size_t)found * stride, &row, stride);
        }
        found++;
    }
    scenario_unlock();
    result = found > *count ? INSUFFICIENT_SIZE : OK;
    *count = found;
    return result;
}

#define LISTS(name, kind)                                                                                              \
    EXPORT int name##_v2(nvmlDevice_t handle, unsigned *count, void *out)                                              \
    {                                                                                                                  \
        return list(handle, #name "_v2", kind, 2, count, out);                                                         \
    }                                                                                                                  \
    EXPORT int name##_v3(nvmlDevice_t handle, unsigned *count, void *out)                                              \
    {                                                                                                                  \
        return list(handle, #name "_v3", kind, 3, count, out);                                                         \
    }

LISTS(nvmlDeviceGetComputeRunningProcesses, 'c')
LISTS(nvmlDeviceGetGraphicsRunningProcesses, 'g')
LISTS(nvmlDeviceGetMPSComputeRunningProcesses, 'm')

typedef struct { unsigned version, mode, count; process_detail_t *out; } process_details_t;

EXPORT int nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t handle, process_details_t *details)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlDeviceGetRunningProcessDetailList", &scenario, &device);
    if (result == OK)
        scenario_unlock();
    (void)details;
    return result == OK ? NOT_SUPPORTED : result;
}

typedef struct { unsigned pid; unsigned long long stamp_us; unsigned sm, memory, encoder, decoder; } process_busy_t;

/* Rows newer than `since_us`. A row without a stamp of its own is as fresh as the driver's last tick of 200 ms. */
EXPORT int nvmlDeviceGetProcessUtilization(nvmlDevice_t handle, process_busy_t *out, unsigned *count, unsigned long long since_us)
{
    scenario_t *scenario;
    device_t *device;
    struct timespec wall;
    int result = begin(handle, "nvmlDeviceGetProcessUtilization", &scenario, &device);
    if (result != OK)
        return result;
    clock_gettime(CLOCK_REALTIME, &wall);
    uint64_t tick_us = (wall.tv_sec * 1000000ULL + wall.tv_nsec / 1000) / 200000 * 200000;
    double t = scenario_seconds(scenario);
    unsigned found = 0;
    for (int i = 0; i < device->busy_count; i++) {
        const busy_t *busy = &device->busy[i];
        uint64_t stamp_us = busy->stamp_us ? busy->stamp_us : tick_us;
        if (t < busy->from || t >= busy->until || (!busy->stamp_us && stamp_us <= since_us))
            continue;
        if (out && found < *count)
            out[found] = (process_busy_t){busy->pid, stamp_us, busy->sm, busy->memory, busy->encoder, busy->decoder};
        found++;
    }
    scenario_unlock();
    if (found == 0)
        return NOT_FOUND; /* what the driver says of an idle device */
    result = !out || found > *count ? INSUFFICIENT_SIZE : OK;
    *count = found;
    return result;
}

typedef struct { unsigned long long stamp_us; unsigned pid, sm, memory, encoder, decoder, jpeg, optical_flow; } process_info_t;
typedef struct { unsigned version, count; unsigned long long since_us; process_info_t *rows; } processes_info_t;

/* The same facts in the newer call's layout; a scenario has it by `get nvmlDeviceGetProcessesUtilizationInfo 1`. */
EXPORT int nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t handle, processes_info_t *info)
{
    scenario_t *scenario;
    device_t *device;
    struct timespec wall;
    int result = begin(handle, "nvmlDeviceGetProcessesUtilizationInfo", &scenario, &device);
    if (result != OK)
        return result;
    const value_t *has = device_value(device, "nvmlDeviceGetProcessesUtilizationInfo");
    clock_gettime(CLOCK_REALTIME, &wall);
    uint64_t tick_us = (wall.tv_sec * 1000000ULL + wall.tv_nsec / 1000) / 200000 * 200000;
    double t = scenario_seconds(scenario);
    unsigned found = 0, room = info->rows ? info->count : 0;
    for (int i = 0; has && i < device->busy_count; i++) {
        const busy_t *busy = &device->busy[i];
        uint64_t stamp_us = busy->stamp_us ? busy->stamp_us : tick_us;
        if (t < busy->from || t >= busy->until || (!busy->stamp_us && stamp_us <= info->since_us))
            continue;
        if (found < room)
            info->rows[found] = (process_info_t){stamp_us, busy->pid, busy->sm, busy->memory, busy->encoder, busy->decoder, 0, 0};
        found++;
    }
    scenario_unlock();
    if (!has || info->version != (sizeof *info | 1 << 24))
        return has ? 25 : NOT_SUPPORTED; /* argument version mismatch */
    info->count = found;
    return found == 0 ? NOT_FOUND : found > room ? INSUFFICIENT_SIZE : OK;
}
