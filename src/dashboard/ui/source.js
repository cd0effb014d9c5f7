// The view: all of it once, then its news as they come.

const KEPT = 720;
const AGAIN_MS = 2000;

export class Source {
  // show(view) is called for each view; lost(message) while there are none, lost(null) after.
  constructor(show, lost) {
    this.show = show;
    this.lost = lost;
    this.view = null;
    this.events = null;
    this.timer = null;
    this.generation = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  async start() {
    this.stop();
    const generation = this.generation;
    try {
      const answer = await fetch("../api/v1/state", { cache: "no-store" });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error ?? `HTTP ${answer.status}`);
      if (generation !== this.generation) return;
      this.view = told;
      this.lost(null);
      this.show(told);
      this.listen(generation);
    } catch (error) {
      if (generation === this.generation) this.again(error);
    }
  }

  listen(generation) {
    const events = new EventSource("../api/v1/events");
    this.events = events;
    events.onmessage = (event) => {
      if (generation !== this.generation) return;
      const news = JSON.parse(event.data);
      news.history = merged(this.view.history, news.history);
      this.view = news;
      this.lost(null);
      this.show(news);
    };
    // Whatever was missed meanwhile comes with the whole view.
    events.onerror = () => {
      if (generation === this.generation) this.again(new Error("the connection ended"));
    };
  }

  again(error) {
    this.stop();
    this.lost(`This node does not answer (${error.message}); trying again.`);
    this.timer = setTimeout(() => this.start(), AGAIN_MS);
  }

  stop() {
    this.generation += 1;
    clearTimeout(this.timer);
    this.events?.close();
    this.events = null;
  }
}

// Points of both, the newer one of each span.
export function merged(old, news) {
  const first = news.length > 0 ? news[0].at_unix_ms : Infinity;
  return [...old.filter((point) => point.at_unix_ms < first), ...news].slice(-KEPT);
}
