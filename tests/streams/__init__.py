"""Real counterparts for live sources: an RTSP server, a proxy that spoils what it carries, cameras that are none."""
