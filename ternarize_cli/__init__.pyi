from ternarize_cli.compress.options import Calibration as Calibration
from ternarize_cli.compress.options import ConvertOptions as ConvertOptions
from ternarize_cli.compress.session import convert as convert
from ternarize_cli.compress.session import pack as pack
from ternarize_cli.distill.options import DistillOptions as DistillOptions
from ternarize_cli.distill.options import Training as Training
from ternarize_cli.distill.session import distill as distill
from ternarize_cli.encoders.loading import load as load
from ternarize_cli.evaluation.options import EvaluationOptions as EvaluationOptions
from ternarize_cli.evaluation.registration import register_in_mteb as register_in_mteb
from ternarize_cli.evaluation.session import evaluate as evaluate
from ternarize_cli.export.options import ExportOptions as ExportOptions
from ternarize_cli.export.session import export as export
from ternarize_cli.format.scheme import Scheme as Scheme
from ternarize_cli.index.build import build_index as build_index
from ternarize_cli.index.options import IndexOptions as IndexOptions
from ternarize_cli.index.options import SearchOptions as SearchOptions
from ternarize_cli.index.session import open_index as open_index
from ternarize_cli.pipeline.options import CompressOptions as CompressOptions
from ternarize_cli.pipeline.session import compress as compress
from ternarize_cli.publish.options import PublishOptions as PublishOptions
from ternarize_cli.publish.session import publish as publish
from ternarize_cli.vectors.options import EncoderOptions as EncoderOptions

__version__: str
