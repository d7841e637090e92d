/* GPM: a sample remembers its moment, and a metric is the mean of the scenario's `gpm:METRIC` between two of them.
 * The scenario gives thousandths of a per cent: `get gpm:2 73500` is 73.5 %. */
#include <stdio.h>
#include <stdlib.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))
#define MEAN_STEPS 256
#define INSTANCE "nvmlDeviceGetGpuInstanceId"

typedef struct gpm_sample { int gpu, mig; double at; } *nvmlGpmSample_t;
typedef struct { unsigned version, is_supported; } support_t;
typedef struct { unsigned id; int result; double value; const char *names[3]; } metric_t;
typedef struct { unsigned version, count; nvmlGpmSample_t first, second; metric_t metrics[]; } metrics_t;

static int has_gpm(const device_t *device)
{
    const value_t *value = device_value(device, "gpm:2");
    return value && value->point_count;
}

EXPORT int nvmlGpmQueryDeviceSupport(nvmlDevice_t handle, support_t *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlGpmQueryDeviceSupport", &scenario, &device);
    if (result != OK)
        return result;
    out->is_supported = has_gpm(device);
    for (int i = 0; i < device->mig_count; i++)
        out->is_supported |= has_gpm(device->migs[i]);
    scenario_unlock();
    return OK;
}

EXPORT int nvmlGpmSampleAlloc(nvmlGpmSample_t *out)
{
    scenario_t *scenario;
    int result = begin_system("nvmlGpmSampleAlloc", 1, &scenario);
    if (result != OK)
        return result;
    *out = calloc(1, sizeof **out);
    scenario_unlock();
    return OK;
}

EXPORT int nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
    scenario_t *scenario;
    int result = begin_system("nvmlGpmSampleFree", 0, &scenario);
    if (result != OK)
        return result;
    free(sample);
    scenario_unlock();
    return OK;
}

EXPORT int nvmlGpmSampleGet(nvmlDevice_t handle, nvmlGpmSample_t sample)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlGpmSampleGet", &scenario, &device);
    if (result != OK)
        return result;
    if (has_gpm(device))
        *sample = (struct gpm_sample){handle_gpu(handle), handle_mig(handle), scenario_seconds(scenario)};
    else
        result = NOT_SUPPORTED;
    scenario_unlock();
    return result;
}

EXPORT int nvmlGpmMigSampleGet(nvmlDevice_t handle, unsigned instance, nvmlGpmSample_t sample)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlGpmMigSampleGet", &scenario, &device);
    if (result != OK)
        return result;
    result = INVALID_ARGUMENT;
    for (int i = 0; i < device->mig_count; i++) {
        const value_t *value = device_value(device->migs[i], INSTANCE);
        if (value && value->point_count && value->points[0].numbers[0] == instance) {
            *sample = (struct gpm_sample){handle_gpu(handle), i, scenario_seconds(scenario)};
            result = has_gpm(device->migs[i]) ? OK : NOT_SUPPORTED;
        }
    }
    scenario_unlock();
    return result;
}

static double mean(const value_t *value, double from, double until)
{
    double sum = 0;
    for (int i = 0; i < MEAN_STEPS; i++) {
        uint64_t numbers[MAX_NUMBERS];
        value_at(value, from + (until - from) * (i + 0.5) / MEAN_STEPS, numbers);
        sum += (double)numbers[0];
    }
    return sum / MEAN_STEPS / 1000;
}

EXPORT int nvmlGpmMetricsGet(metrics_t *request)
{
    scenario_t *scenario;
    int result = begin_system("nvmlGpmMetricsGet", 1, &scenario);
    if (result != OK)
        return result;
    const struct gpm_sample *first = request->first, *second = request->second;
    const device_t *device = NULL;
    if (request->version == 1 && first->gpu == second->gpu && first->mig == second->mig && first->at < second->at
        && first->gpu < scenario->gpu_count)
        device = scenario->gpus[first->gpu];
    if (device && first->mig >= 0)
        device = first->mig < device->mig_count ? device->migs[first->mig] : NULL;
    for (unsigned i = 0; device && i < request->count; i++) {
        metric_t *metric = &request->metrics[i];
        char key[72];
        snprintf(key, sizeof key, "gpm:%u", metric->id);
        const value_t *value = device_value(device, key);
        metric->result = value && value->point_count ? OK : NOT_SUPPORTED;
        if (metric->result == OK)
            metric->value = mean(value, first->at, second->at);
    }
    scenario_unlock();
    return device ? OK : INVALID_ARGUMENT;
}
