"""The networks: nn.Modules, their geometry and their losses."""
