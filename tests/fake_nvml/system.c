/* The driver as a whole: versions, the devices by index, UUID and bus, MIG devices, names of errors. */
#include <stdio.h>
#include <string.h>

#include "calls.h"

#define EXPORT __attribute__((visibility("default")))

static int system_text(const char *call, char *out, unsigned length)
{
    scenario_t *scenario;
    int result = begin_system(call, 1, &scenario);
    if (result != OK)
        return result;
    const value_t *value = device_value(scenario->system, call);
    if (value && value->text)
        snprintf(out, length, "%s", value->text);
    else
        result = NOT_SUPPORTED;
    scenario_unlock();
    return result;
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned length) { return system_text("nvmlSystemGetDriverVersion", out, length); }
EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned length) { return system_text("nvmlSystemGetNVMLVersion", out, length); }

static int cuda_version(const char *call, int *out)
{
    scenario_t *scenario;
    uint64_t numbers[MAX_NUMBERS];
    int result = begin_system(call, 1, &scenario);
    if (result != OK)
        return result;
    const value_t *value = device_value(scenario->system, "nvmlSystemGetCudaDriverVersion");
    if (value && value->point_count) {
        value_at(value, 0, numbers);
        *out = (int)numbers[0];
    } else {
        result = NOT_SUPPORTED;
    }
    scenario_unlock();
    return result;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *out) { return cuda_version("nvmlSystemGetCudaDriverVersion", out); }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out) { return cuda_version("nvmlSystemGetCudaDriverVersion_v2", out); }

EXPORT int nvmlDeviceGetCount_v2(unsigned *out)
{
    scenario_t *scenario;
    int result = begin_system("nvmlDeviceGetCount_v2", 1, &scenario);
    if (result != OK)
        return result;
    *out = (unsigned)scenario->gpu_count;
    scenario_unlock();
    return OK;
}

/* Unlike nvmlInit, asking for a handle touches the device: a lost one answers with its error here. */
static int hand_out(const char *call, int gpu, int mig, nvmlDevice_t *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle_of(gpu, mig), call, &scenario, &device);
    if (result == OK) {
        *out = handle_of(gpu, mig);
        scenario_unlock();
    }
    return result;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out)
{
    scenario_t *scenario;
    int result = begin_system("nvmlDeviceGetHandleByIndex_v2:any", 1, &scenario);
    if (result != OK)
        return result;
    int known = index < (unsigned)scenario->gpu_count;
    scenario_unlock();
    return known ? hand_out("nvmlDeviceGetHandleByIndex_v2", (int)index, -1, out) : INVALID_ARGUMENT;
}

static int hand_out_by_text(const char *call, const char *key, const char *wanted, nvmlDevice_t *out)
{
    scenario_t *scenario;
    char name[72];
    snprintf(name, sizeof name, "%s:any", call);
    int result = begin_system(name, 1, &scenario), found_gpu = -1, found_mig = -1;
    if (result != OK)
        return result;
    for (int gpu = 0; gpu < scenario->gpu_count; gpu++) {
        for (int mig = -1; mig < scenario->gpus[gpu]->mig_count; mig++) {
            device_t *device = mig < 0 ? scenario->gpus[gpu] : scenario->gpus[gpu]->migs[mig];
            const value_t *value = device_value(device, key);
            if (value && value->text && !strcasecmp(value->text, wanted)) {
                found_gpu = gpu;
                found_mig = mig;
            }
        }
    }
    scenario_unlock();
    return found_gpu < 0 ? NOT_FOUND : hand_out(call, found_gpu, found_mig, out);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out)
{
    return hand_out_by_text("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUUID", uuid, out);
}

EXPORT int nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *out)
{
    return hand_out_by_text("nvmlDeviceGetHandleBySerial", "nvmlDeviceGetSerial", serial, out);
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *out)
{
    return hand_out_by_text("nvmlDeviceGetHandleByPciBusId_v2", "nvmlDeviceGetPciInfo_v3", bus_id, out);
}

static int number_of(nvmlDevice_t handle, const char *call, int is_mig_question, unsigned *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, call, &scenario, &device);
    if (result != OK)
        return result;
    *out = is_mig_question ? handle_mig(handle) >= 0 : (unsigned)handle_gpu(handle);
    scenario_unlock();
    return OK;
}

EXPORT int nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned *out) { return number_of(handle, "nvmlDeviceGetIndex", 0, out); }
EXPORT int nvmlDeviceGetMinorNumber(nvmlDevice_t handle, unsigned *out) { return number_of(handle, "nvmlDeviceGetMinorNumber", 0, out); }
EXPORT int nvmlDeviceIsMigDeviceHandle(nvmlDevice_t handle, unsigned *out) { return number_of(handle, "nvmlDeviceIsMigDeviceHandle", 1, out); }

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlDeviceGetMigDeviceHandleByIndex", &scenario, &device);
    if (result != OK)
        return result;
    if (index < (unsigned)device->mig_count)
        *out = handle_of(handle_gpu(handle), (int)index);
    else
        result = NOT_FOUND;
    scenario_unlock();
    return result;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t handle, nvmlDevice_t *out)
{
    scenario_t *scenario;
    device_t *device;
    int result = begin(handle, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", &scenario, &device);
    if (result != OK)
        return result;
    if (device->parent)
        *out = handle_of(handle_gpu(handle), -1);
    else
        result = INVALID_ARGUMENT;
    scenario_unlock();
    return result;
}

EXPORT const char *nvmlErrorString(int result)
{
    switch (result) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMED_OUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
