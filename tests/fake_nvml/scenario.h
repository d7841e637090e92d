/* The state of the machine that the fake driver pretends to run on, read from a text file; README.md has the format.
 *
 * Every value is a function of time, so that a recorded series, a wave and a counter need no thread here: a call computes
 * what the device says at this moment, and the sample rings are the same function asked about the past.
 */
#ifndef SCENARIO_H
#define SCENARIO_H

#include <stddef.h>
#include <stdint.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMED_OUT = 10, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18, UNKNOWN_ERROR = 999 };

#define MAX_NUMBERS 4
#define NOT_AVAILABLE UINT64_MAX

typedef struct { double at; uint64_t numbers[MAX_NUMBERS]; } point_t;

typedef struct {
    char key[72];
    char *text;               /* for getters that answer a string */
    point_t *points;          /* ascending in time; the first stands for everything before it, too */
    int point_count;
    double rate, amplitude, period; /* numbers[0] + rate * t + amplitude * sin(2 pi t / period) */
} value_t;

enum fault_kind { FAULT_HANG, FAULT_SLOW, FAULT_ERROR };
typedef struct { enum fault_kind kind; char call[72]; long argument; } fault_t;

typedef struct { char kind; unsigned pid; uint64_t bytes; double from, until; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned pid, sm, memory, encoder, decoder; double from, until; uint64_t stamp_us; } busy_t;

/* An event that the driver reports at `at`. Ids ascend on a device: a set tells those above what it has told. */
typedef struct { unsigned id; double at; uint64_t type, data; } event_t;

typedef struct device {
    struct device *parent;    /* of a MIG device: its GPU */
    value_t *values; int value_count;
    int *slots; int slot_count; /* open-addressing hash of values */
    fault_t *faults; int fault_count;
    process_t *processes; int process_count;
    busy_t *busy; int busy_count;
    event_t *events; int event_count;
    struct device **migs; int mig_count;
} device_t;

typedef struct {
    device_t *system;         /* what is asked without a device; its faults hold for every device */
    device_t **gpus; int gpu_count;
    double epoch;             /* CLOCK_MONOTONIC seconds at t = 0 */
    long generation;          /* a new one is a driver reload: everything is uninitialised until the next nvmlInit */
    int process_struct_bytes; /* what the v3 process lists write: 24, or the 32 of early R535 */
} scenario_t;

/* The scenario of now, re-read when its file changed. Call with the lock held; it stays valid until the lock is dropped. */
scenario_t *scenario_now(void);
void scenario_lock(void);
void scenario_unlock(void);

double scenario_seconds(const scenario_t *scenario);
const value_t *device_value(const device_t *device, const char *key);
void value_at(const value_t *value, double t, uint64_t numbers[MAX_NUMBERS]);

#endif
