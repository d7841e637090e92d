// The last five minutes of every GPU: what the daemon kept, then what each snapshot adds.

const POINTS = 300;

export class GpuHistory {
  constructor() {
    this.seconds = [];
    this.columns = new Map(); // uuid -> {name: [values]}
    this.asked = 0;
  }

  /** Reads the daemon's window; after a connection of any kind, since points may have been missed. */
  async load() {
    const number = (this.asked += 1);
    let kept = null;
    try {
      const response = await fetch("api/window");
      kept = response.ok ? await response.json() : null;
    } catch {
      // the feed says that the daemon is away
    }
    if (kept === null || number !== this.asked) return;
    this.seconds = kept.seconds;
    this.columns = new Map(Object.entries(kept.gpus));
  }

  add(snapshot) {
    const last = this.seconds.at(-1) ?? 0;
    if (snapshot.wall_seconds <= last + 0.5) return; // the window had it already
    this.seconds.push(snapshot.wall_seconds);
    const known = this.seconds.length;
    for (const gpu of snapshot.gpus) {
      if (!this.columns.has(gpu.uuid)) this.columns.set(gpu.uuid, {});
      const columns = this.columns.get(gpu.uuid);
      const values = gpu.values;
      const points = {
        utilization_ratio: values.utilization_ratio,
        memory_used_bytes: values.memory_used_bytes,
        memory_peak_bytes: Math.max(values.memory_used_bytes, gpu.memory_second_peak_bytes ?? 0) || null,
        power_watts: values.power_watts,
        temperature_celsius: values.temperature_celsius?.core,
      };
      for (const [name, value] of Object.entries(points)) {
        const column = (columns[name] ??= []);
        while (column.length < known - 1) column.push(null);
        column.push(gpu.up ? (value ?? null) : null);
      }
    }
    const over = known - POINTS;
    if (over > 0) this.seconds.splice(0, over);
    for (const columns of this.columns.values()) {
      for (const column of Object.values(columns)) {
        while (column.length < known) column.push(null);
        if (over > 0) column.splice(0, over);
      }
    }
  }

  /** [seconds, values of each name ...]; null where there was no value. */
  curves(uuid, ...names) {
    const columns = this.columns.get(uuid) ?? {};
    return [this.seconds, ...names.map((name) => columns[name] ?? this.seconds.map(() => null))];
  }
}
