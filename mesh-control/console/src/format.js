// Figures and names as people read them.
export const rate = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
export const percent = (share) => (share === 0 ? "0 %" : share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`);
export const millis = (value) =>
  value == null ? "–" : value >= 1000 ? `${(value / 1000).toFixed(2)} s` : value >= 10 ? `${value.toFixed(0)} ms` : `${value.toFixed(1)} ms`;
export const micros = (value) => millis(value / 1000);
export const short = (host) => host.replace(/\.svc\.cluster\.local$/, "").replace(/\.default$/, "");
export const clock = (ms) => new Date(ms).toLocaleTimeString();
export const ago = (ms) => {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  return seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
};
/** How bad a share of failures is: a word for people, a class for colours. */
export const health = (errors, requests = 1) => (!requests ? "idle" : errors > 0.05 ? "bad" : errors > 0.001 ? "poor" : "good");
