/* The getters of a device: nearly all have one of a few shapes, so each is one line that names its shape. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))

#define ONE(call, type)                                                                                                \
    EXPORT int call(nvmlDevice_t handle, type *out)                                                                    \
    {                                                                                                                  \
        uint64_t numbers[MAX_NUMBERS];                                                                                 \
        int result = answer(handle, #call, #call, numbers);                                                            \
        if (result == OK)                                                                                              \
            *out = (type)numbers[0];                                                                                   \
        return result;                                                                                                 \
    }

#define TWO(call)                                                                                                      \
    EXPORT int call(nvmlDevice_t handle, unsigned *first, unsigned *second)                                            \
    {                                                                                                                  \
        uint64_t numbers[MAX_NUMBERS];                                                                                 \
        int result = answer(handle, #call, #call, numbers);                                                            \
        if (result == OK) {                                                                                            \
            *first = (unsigned)numbers[0];                                                                             \
            *second = (unsigned)numbers[1];                                                                            \
        }                                                                                                              \
        return result;                                                                                                 \
    }

/* One number for each value of an enumeration: the scenario's key is "call:which". */
#define CHOSEN(call)                                                                                                   \
    EXPORT int call(nvmlDevice_t handle, unsigned which, unsigned *out)                                                \
    {                                                                                                                  \
        uint64_t numbers[MAX_NUMBERS];                                                                                 \
        char key[72];                                                                                                  \
        snprintf(key, sizeof key, "%s:%u", #call, which);                                                              \
        int result = answer(handle, #call, key, numbers);                                                              \
        if (result == OK)                                                                                              \
            *out = (unsigned)numbers[0];                                                                               \
        return result;                                                                                                 \
    }

#define TEXT(call)                                                                                                     \
    EXPORT int call(nvmlDevice_t handle, char *out, unsigned length) { return text(handle, #call, out, length); }

ONE(nvmlDeviceGetAccountingBufferSize, unsigned)
ONE(nvmlDeviceGetAccountingMode, unsigned)
ONE(nvmlDeviceGetArchitecture, unsigned)
ONE(nvmlDeviceGetBoardId, unsigned)
ONE(nvmlDeviceGetBrand, unsigned)
ONE(nvmlDeviceGetBusType, unsigned)
ONE(nvmlDeviceGetComputeInstanceId, unsigned)
ONE(nvmlDeviceGetComputeMode, unsigned)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetCurrPcieLinkWidth, unsigned)
ONE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long)
ONE(nvmlDeviceGetDisplayActive, unsigned)
ONE(nvmlDeviceGetDisplayMode, unsigned)
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned)
ONE(nvmlDeviceGetFanSpeed, unsigned)
ONE(nvmlDeviceGetGpuInstanceId, unsigned)
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetInforomConfigurationChecksum, unsigned)
ONE(nvmlDeviceGetIrqNum, unsigned)
ONE(nvmlDeviceGetMaxMigDeviceCount, unsigned)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetMaxPcieLinkWidth, unsigned)
ONE(nvmlDeviceGetMemoryBusWidth, unsigned)
ONE(nvmlDeviceGetMultiGpuBoard, unsigned)
ONE(nvmlDeviceGetNumFans, unsigned)
ONE(nvmlDeviceGetNumGpuCores, unsigned)
ONE(nvmlDeviceGetPcieLinkMaxSpeed, unsigned)
ONE(nvmlDeviceGetPcieReplayCounter, unsigned)
ONE(nvmlDeviceGetPcieSpeed, unsigned)
ONE(nvmlDeviceGetPerformanceState, unsigned)
ONE(nvmlDeviceGetPersistenceMode, unsigned)
ONE(nvmlDeviceGetPowerManagementDefaultLimit, unsigned)
ONE(nvmlDeviceGetPowerManagementLimit, unsigned)
ONE(nvmlDeviceGetPowerManagementMode, unsigned)
ONE(nvmlDeviceGetPowerSource, unsigned)
ONE(nvmlDeviceGetPowerState, unsigned)
ONE(nvmlDeviceGetPowerUsage, unsigned)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, unsigned)
ONE(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long)
ONE(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long)
ONE(nvmlDeviceGetSupportedEventTypes, unsigned long long)
ONE(nvmlDeviceGetTotalEnergyConsumption, unsigned long long)
ONE(nvmlDeviceGetVirtualizationMode, unsigned)

TWO(nvmlDeviceGetCudaComputeCapability)
TWO(nvmlDeviceGetDecoderUtilization)
TWO(nvmlDeviceGetEccMode)
TWO(nvmlDeviceGetEncoderUtilization)
TWO(nvmlDeviceGetGspFirmwareMode)
TWO(nvmlDeviceGetJpgUtilization)
TWO(nvmlDeviceGetMigMode)
TWO(nvmlDeviceGetOfaUtilization)
TWO(nvmlDeviceGetPowerManagementLimitConstraints)

CHOSEN(nvmlDeviceGetClockInfo)
CHOSEN(nvmlDeviceGetFanSpeed_v2)
CHOSEN(nvmlDeviceGetMaxClockInfo)
CHOSEN(nvmlDeviceGetPcieThroughput)
CHOSEN(nvmlDeviceGetTemperature)
CHOSEN(nvmlDeviceGetTemperatureThreshold)

static int text(nvmlDevice_t handle, const char *call, char *out, unsigned length)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, call, &scenario, &device);
    if (result != OK)
        return result;
    const value_t *value = device_value(device, call);
    if (!value || !value->text)
        result = NOT_SUPPORTED;
    else if (strlen(value->text) + 1 > length)
        result = INSUFFICIENT_SIZE;
    else
        strcpy(out, value->text);
    scenario_unlock();
    return result;
}

TEXT(nvmlDeviceGetBoardPartNumber)
TEXT(nvmlDeviceGetInforomImageVersion)
TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetSerial)
TEXT(nvmlDeviceGetUUID)
TEXT(nvmlDeviceGetVbiosVersion)

typedef struct { unsigned gpu, memory; } utilization_t;

EXPORT int nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, utilization_t *out)
{
    uint64_t numbers[MAX_NUMBERS];
    int result = answer(handle, "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetUtilizationRates", numbers);
    if (result == OK)
        *out = (utilization_t){(unsigned)numbers[0], (unsigned)numbers[1]};
    return result;
}

/* Memory is kept once, as v2 tells it: total, reserved, used. v1 counts what is reserved as used. */
static int memory(nvmlDevice_t handle, const char *call, uint64_t *total, uint64_t *reserved, uint64_t *used)
{
    uint64_t numbers[MAX_NUMBERS];
    int result = answer(handle, call, "memory", numbers);
    if (result != OK)
        return result;
    *total = numbers[0];
    *reserved = numbers[1];
    *used = numbers[2];
    return OK;
}

typedef struct { unsigned long long total, free, used; } memory_v1_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;

EXPORT int nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, memory_v1_t *out)
{
    uint64_t total, reserved, used;
    int result = memory(handle, "nvmlDeviceGetMemoryInfo", &total, &reserved, &used);
    if (result == OK)
        *out = (memory_v1_t){total, total - reserved - used, reserved + used};
    return result;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, memory_v2_t *out)
{
    uint64_t total, reserved, used;
    if (out->version != (sizeof *out | 2 << 24))
        return 25; /* argument version mismatch */
    int result = memory(handle, "nvmlDeviceGetMemoryInfo_v2", &total, &reserved, &used);
    if (result == OK)
        *out = (memory_v2_t){out->version, total, reserved, total - reserved - used, used};
    return result;
}

EXPORT int nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t handle, memory_v1_t *out)
{
    uint64_t numbers[MAX_NUMBERS];
    int result = answer(handle, "nvmlDeviceGetBAR1MemoryInfo", "nvmlDeviceGetBAR1MemoryInfo", numbers);
    if (result == OK)
        *out = (memory_v1_t){numbers[0], numbers[0] - numbers[1], numbers[1]};
    return result;
}

typedef struct { unsigned version, sensor; int celsius; } temperature_t;

EXPORT int nvmlDeviceGetTemperatureV(nvmlDevice_t handle, temperature_t *out)
{
    uint64_t numbers[MAX_NUMBERS];
    char key[72];
    snprintf(key, sizeof key, "nvmlDeviceGetTemperature:%u", out->sensor);
    int result = answer(handle, "nvmlDeviceGetTemperatureV", key, numbers);
    if (result == OK)
        out->celsius = (int)numbers[0];
    return result;
}

EXPORT int nvmlDeviceGetTotalEccErrors(nvmlDevice_t handle, unsigned severity, unsigned lifetime, unsigned long long *out)
{
    uint64_t numbers[MAX_NUMBERS];
    char key[72];
    snprintf(key, sizeof key, "nvmlDeviceGetTotalEccErrors:%u:%u", severity, lifetime);
    int result = answer(handle, "nvmlDeviceGetTotalEccErrors", key, numbers);
    if (result == OK)
        *out = numbers[0];
    return result;
}

EXPORT int nvmlDeviceGetRemappedRows(nvmlDevice_t handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed)
{
    uint64_t numbers[MAX_NUMBERS];
    int result = answer(handle, "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRemappedRows", numbers);
    if (result == OK) {
        *corrected = (unsigned)numbers[0];
        *uncorrected = (unsigned)numbers[1];
        *pending = (unsigned)numbers[2];
        *failed = (unsigned)numbers[3];
    }
    return result;
}

typedef struct { unsigned long long reference, violation; } violation_t;

EXPORT int nvmlDeviceGetViolationStatus(nvmlDevice_t handle, unsigned policy, violation_t *out)
{
    uint64_t numbers[MAX_NUMBERS];
    char key[72];
    snprintf(key, sizeof key, "nvmlDeviceGetViolationStatus:%u", policy);
    int result = answer(handle, "nvmlDeviceGetViolationStatus", key, numbers);
    if (result == OK)
        *out = (violation_t){numbers[0], numbers[1]};
    return result;
}

typedef struct { unsigned long long protected_kib, unprotected_kib; } protected_memory_t;

EXPORT int nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t handle, protected_memory_t *out)
{
    uint64_t numbers[MAX_NUMBERS];
    int result = answer(handle, "nvmlDeviceGetConfComputeMemSizeInfo", "nvmlDeviceGetConfComputeMemSizeInfo", numbers);
    if (result == OK)
        *out = (protected_memory_t){numbers[0], numbers[1]};
    return result;
}

typedef struct {
    char legacy_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
} pci_t;

EXPORT int nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, pci_t *out)
{
    char id[32];
    int result = text(handle, "nvmlDeviceGetPciInfo_v3", id, sizeof id);
    if (result == OK) {
        memset(out, 0, sizeof *out);
        snprintf(out->id, sizeof out->id, "%s", id);
        snprintf(out->legacy_id, sizeof out->legacy_id, "%.12s", id + 4);
        sscanf(id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
        out->device_id = 590352606; /* the recorded H100's */
        out->subsystem_id = 381751518;
    }
    return result;
}

typedef union { double d; unsigned ui; unsigned long long ull; } number_t;
typedef struct { uint32_t field, scope; int64_t timestamp_us, latency_us; int type, result; number_t value; } field_value_t;

EXPORT int nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, field_value_t *fields)
{
    scenario_t *scenario;
    device_t *device;
    struct timespec wall;
    int result = begin(handle, "nvmlDeviceGetFieldValues", &scenario, &device);
    if (result != OK)
        return result;
    clock_gettime(CLOCK_REALTIME, &wall);
    for (int i = 0; i < count; i++) {
        uint64_t numbers[MAX_NUMBERS];
        char key[72];
        snprintf(key, sizeof key, "field:%u", fields[i].field);
        const value_t *value = device_value(device, key);
        fields[i].result = value && value->point_count ? OK : NOT_SUPPORTED;
        if (fields[i].result != OK)
            continue;
        value_at(value, scenario_seconds(scenario), numbers);
        fields[i].timestamp_us = wall.tv_sec * 1000000LL + wall.tv_nsec / 1000;
        fields[i].type = (int)numbers[1];
        if (fields[i].type == 1) /* unsigned int: 32 bits, which is why byte counters wrap */
            fields[i].value.ui = (unsigned)numbers[0];
        else
            fields[i].value.ull = numbers[0];
    }
    scenario_unlock();
    return OK;
}
