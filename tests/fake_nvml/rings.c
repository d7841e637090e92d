/* What the driver recorded by itself: the same functions of time that the getters answer from, asked about the past. */
#include <time.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))

typedef union { double d; unsigned ui; unsigned long long ull; } number_t;
typedef struct { unsigned long long timestamp_us; number_t value; } sample_t;

/* The driver's rings, as found on an H100: 119 power samples 20 ms apart, 71 of each utilisation 200 ms apart. It had none of
 * the clocks (types 5 and 6): a scenario gives those by `get ring:5 MHZ`. */
EXPORT int nvmlDeviceGetSamples(nvmlDevice_t handle, unsigned type, unsigned long long since_us, int *value_type, unsigned *count, sample_t *samples)
{
    static const struct { const char *key; int number, entries; double spacing; } rings[] = {
        {"nvmlDeviceGetPowerUsage", 0, 119, 0.02},        {"nvmlDeviceGetUtilizationRates", 0, 71, 0.2},
        {"nvmlDeviceGetUtilizationRates", 1, 71, 0.2},    {"nvmlDeviceGetEncoderUtilization", 0, 71, 0.2},
        {"nvmlDeviceGetDecoderUtilization", 0, 71, 0.2},  {"ring:5", 0, 71, 0.2},
        {"ring:6", 0, 71, 0.2},
    };
    scenario_t *scenario;
    device_t *device;
    struct timespec wall;
    int result = begin(handle, "nvmlDeviceGetSamples", &scenario, &device);
    if (result != OK)
        return result;
    const value_t *value = type < sizeof rings / sizeof *rings ? device_value(device, rings[type].key) : NULL;
    if (!value || !value->point_count) {
        scenario_unlock();
        return NOT_FOUND;
    }
    clock_gettime(CLOCK_REALTIME, &wall);
    double wall_seconds = wall.tv_sec + wall.tv_nsec * 1e-9, t = scenario_seconds(scenario), spacing = rings[type].spacing;
    long long last_tick = (long long)(wall_seconds / spacing);
    unsigned written = 0;
    *value_type = 1;
    for (int i = rings[type].entries - 1; i >= 0; i--) {
        double stamp = (double)(last_tick - i) * spacing;
        uint64_t numbers[MAX_NUMBERS];
        if (stamp * 1e6 <= (double)since_us)
            continue;
        if (samples && written < *count) {
            value_at(value, t - (wall_seconds - stamp), numbers);
            samples[written].timestamp_us = (unsigned long long)(stamp * 1e6);
            samples[written].value.ui = (unsigned)numbers[rings[type].number];
        }
        written++;
    }
    scenario_unlock();
    if (samples && written > *count)
        return INSUFFICIENT_SIZE;
    *count = written;
    return written ? OK : NOT_FOUND;
}
